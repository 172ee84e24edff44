"""SparseSync's rules: its lists, offsets, cuts and files."""
