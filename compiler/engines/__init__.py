"""Engines run work units: on this machine, or elsewhere behind the same interface."""
