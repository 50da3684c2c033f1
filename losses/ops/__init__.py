"""Full-size operations of the losses as PyTorch operators.

`operators` defines them; `plain`, `c` and `triton` implement the same functions.
"""
