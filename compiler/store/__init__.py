"""Bytes on disk, whoever makes them: everything published is written and read through here."""
