"""Reads what was published, trusts nothing, changes nothing."""
