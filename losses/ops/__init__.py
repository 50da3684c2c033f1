"""The full-size work of the losses as PyTorch operators."""
