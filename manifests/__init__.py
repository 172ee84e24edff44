"""The table everybody shares: schema, reading, writing, filters, merging, export. Imports no other floor."""
