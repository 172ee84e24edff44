"""Moves units to workers; knows neither inputs nor media."""
