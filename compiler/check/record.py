"""What KEY.json must be: the sample's row of the manifest, in canonical form."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import polars as pl

from javisc.compiler.store.rows import sample_json
from javisc.manifests.schema import MANIFEST_SCHEMA, RECORD_ONLY


def json_defects(content: bytes, found: dict[str, Any], recipe: object = None) -> Iterator[str]:
    """KEY.json must say what the manifest says, in canonical form (32-bit floats are compared as such)."""
    row = {name: found.get(name) for name in MANIFEST_SCHEMA}
    try:
        parsed = json.loads(content)
    except (ValueError, RecursionError) as error:
        yield f"no JSON: {error}"
        return
    if not isinstance(parsed, dict) or not set(parsed) <= {*MANIFEST_SCHEMA, *RECORD_ONLY}:
        yield "holds other fields than the manifest's columns"
        return
    if sample_json(parsed).encode() != content:
        yield "is not in canonical form"
    parsed = {name: value for name, value in parsed.items() if name not in RECORD_ONLY}
    said = pl.DataFrame([parsed], schema={name: MANIFEST_SCHEMA[name] for name in parsed}, strict=False).row(
        0, named=True
    )
    expected = json.loads(sample_json(row))
    for name in sorted(set(expected) | set(said)):
        if said.get(name) != row.get(name):
            yield f"{name} is {said.get(name)!r}, the manifest has {row.get(name)!r}"
