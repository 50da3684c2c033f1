"""Launcher: what to do with each run of a table, and the executors that do it."""
