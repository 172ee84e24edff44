"""Finds samples that are there twice or nearly."""
