"""What a batch holds, decided from metadata alone: columns, buckets, windows, the order of an epoch. Opens no shard."""
