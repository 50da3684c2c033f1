"""Launcher: an action for each run of a table, and executors for this machine and SLURM."""
