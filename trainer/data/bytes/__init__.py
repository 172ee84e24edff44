"""From byte ranges in shards to tensors: reading, checking, decoding, the graph. Decides nothing."""
