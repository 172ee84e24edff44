"""Shadows DALI, which verify uses where it is installed, so that a test of something else need not import it."""
