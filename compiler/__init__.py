"""Raw media → clips → shards. Imports no torch: installs and starts light.

Public names are listed below; the function `build` is `javisc.compiler.build.build`.
"""

from typing import TYPE_CHECKING

from javisc.manifests.entries import lazily

if TYPE_CHECKING:
    from javisc.compiler.build import BuildResult as BuildResult
    from javisc.compiler.check.dataset import verify as verify
    from javisc.compiler.check.status import status as status
    from javisc.compiler.inputs.raw import from_raw as from_raw
    from javisc.compiler.inputs.table import table as input_table  # noqa: F401
    from javisc.compiler.plan.options import BuildOptions as BuildOptions
    from javisc.compiler.recipe import PRESETS as PRESETS
    from javisc.compiler.recipe import Recipe as Recipe
    from javisc.compiler.store.fields import FieldWriter as FieldWriter
    from javisc.compiler.store.writer import DatasetWriter as DatasetWriter

#: The public names and where they are at home; imported at first use, so that the package itself stays light.
_NAMES = {
    "BuildOptions": "javisc.compiler.plan.options:BuildOptions",
    "BuildResult": "javisc.compiler.build:BuildResult",
    "FieldWriter": "javisc.compiler.store.fields:FieldWriter",
    "DatasetWriter": "javisc.compiler.store.writer:DatasetWriter",
    "PRESETS": "javisc.compiler.recipe:PRESETS",
    "Recipe": "javisc.compiler.recipe:Recipe",
    "from_raw": "javisc.compiler.inputs.raw:from_raw",
    "input_table": "javisc.compiler.inputs.table:table",
    "status": "javisc.compiler.check.status:status",
    "verify": "javisc.compiler.check.dataset:verify",
}
__getattr__ = lazily(__name__, _NAMES)


def __dir__() -> list[str]:
    return sorted(_NAMES)
