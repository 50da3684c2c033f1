"""Inference with a trained model: inferers, evaluations, prediction files, export, and checked checkpoints."""
