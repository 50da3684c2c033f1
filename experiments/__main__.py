"""`python -m beyondpixel.experiments` is `beyondpixel`."""

from beyondpixel.experiments.cli import main

main()
