"""SparseSync (Iashin et al., BMVC 2022): how far is the sound shifted against the picture?"""
