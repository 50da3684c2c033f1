"""Command line, run specs, launcher and comparison."""
