"""The full-size work of the losses as PyTorch operators.

`operators` and `target` define them; `plain`, `c` and `triton` are implementations of one contract.
"""
