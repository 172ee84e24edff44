"""Datasets → batches: the sampler decides from metadata alone, the reader fetches byte ranges, the pipeline decodes."""
