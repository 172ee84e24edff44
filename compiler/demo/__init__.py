"""Scenes whose sync is known, drawn and sounded by definition, and the demonstrations made of them."""
