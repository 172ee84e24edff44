"""Shadows torch, which webdataset imports where it can, so that a test of something else need not wait for it."""

raise ModuleNotFoundError("not in this test")
