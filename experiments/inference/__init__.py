"""What a trained model is used for: dense CRF, test-time augmentation, sliding windows, prediction files, export."""
