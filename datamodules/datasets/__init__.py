"""Sources of images and masks: strictly checked files, or generated scenes."""
