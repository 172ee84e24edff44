"""Frozen text towers."""
