"""AudioSep (Liu et al. 2023): a residual U-Net on magnitudes, told by CLAP's text branch what to keep."""
