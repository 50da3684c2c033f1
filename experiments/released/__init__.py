"""Networks whose weights are release files: how one is made, found and scored again."""
