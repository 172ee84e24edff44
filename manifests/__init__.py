"""The table everybody shares: schema, reading, writing, filters, merging, export. Imports no other floor."""

from typing import TYPE_CHECKING

from javisc.manifests.entries import lazily

if TYPE_CHECKING:
    from javisc.manifests.errors import UserError as UserError
    from javisc.manifests.io import Dataset as Dataset
    from javisc.manifests.kinds import MEMBERS as MEMBERS
    from javisc.manifests.members import MemberReader as MemberReader
    from javisc.manifests.schema import MANIFEST_SCHEMA as MANIFEST_SCHEMA

#: The public names and where they are at home; imported at first use, so that the package itself stays light.
_NAMES = {
    "Dataset": "javisc.manifests.io:Dataset",
    "MANIFEST_SCHEMA": "javisc.manifests.schema:MANIFEST_SCHEMA",
    "MEMBERS": "javisc.manifests.kinds:MEMBERS",
    "MemberReader": "javisc.manifests.members:MemberReader",
    "UserError": "javisc.manifests.errors:UserError",
}
__getattr__ = lazily(__name__, _NAMES)


def __dir__() -> list[str]:
    return sorted(_NAMES)
