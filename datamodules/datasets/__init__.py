"""Where images and masks come from: files, checked strictly, or generated scenes."""
