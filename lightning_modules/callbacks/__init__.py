"""Callbacks: pictures, throughput, writing predictions."""
