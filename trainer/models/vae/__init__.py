"""Frozen autoencoders: latents in and out."""
