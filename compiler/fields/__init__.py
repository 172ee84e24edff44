"""What makes fields of a dataset: annotations joined from tables, and renditions of its pictures; base shards are only read."""
