"""Datasets → batches → models → steps → checkpoints. Needs the `train` extra."""
