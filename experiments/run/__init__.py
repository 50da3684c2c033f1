"""One run: its folder, status, provenance and processes."""
