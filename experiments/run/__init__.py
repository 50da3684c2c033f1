"""One run on disk: its folder, its status and where its scores come from."""
