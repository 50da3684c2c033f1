"""The full-size work of the losses as PyTorch operators.

`operators` defines them; `plain`, `c` and `triton` are implementations of one contract.
"""
