"""Datasets → batches: the sampler decides from metadata alone, the reader fetches byte ranges, the pipeline decodes."""

from typing import TYPE_CHECKING

from javisc.manifests.entries import lazily

if TYPE_CHECKING:
    from javisc.trainer.data.bytes.loader import Loader as Loader
    from javisc.trainer.data.index.assign import single_bucket as single_bucket
    from javisc.trainer.data.index.catalog import Catalog as Catalog
    from javisc.trainer.data.index.sampler import Sampler as Sampler

#: The public names and where they are at home; imported at first use, so that the package itself stays light.
_NAMES = {
    "Catalog": "javisc.trainer.data.index.catalog:Catalog",
    "Loader": "javisc.trainer.data.bytes.loader:Loader",
    "Sampler": "javisc.trainer.data.index.sampler:Sampler",
    "single_bucket": "javisc.trainer.data.index.assign:single_bucket",
}
__getattr__ = lazily(__name__, _NAMES)


def __dir__() -> list[str]:
    return sorted(_NAMES)
