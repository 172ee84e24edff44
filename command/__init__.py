"""The `javisc` command. Its floors are `javisc.manifests`, `javisc.kernels`, `javisc.compiler` and `javisc.trainer`."""

__version__ = "0.1.0"
