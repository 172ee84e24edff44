"""Synchformer (Iashin et al., ICASSP 2024): sync told from short segments, each seen and heard alone before they are joined."""
