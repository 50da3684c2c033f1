"""Comparison of runs, read from their run folders alone."""
