"""Released networks: make, load and score their release files."""
