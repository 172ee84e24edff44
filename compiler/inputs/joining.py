"""The forms in which names of inputs and samples are compared, whatever table they come from."""

from __future__ import annotations

import os
from collections.abc import Callable

import polars as pl

from javisc.compiler.inputs.table import normal_relpath


def joinable(name: str) -> pl.Expr:
    """A column in the form it is compared in: ids without a media file's extension, relpaths and paths in one form."""
    column = pl.col(name)
    if name == "id":
        return column.str.replace(
            r"(?i)(.)\.(mp4|avi|mov|mkv|m2ts|ts|webm|m4v|mpe?g|wav|flac|mp3|ogg|opus|m4a|aac|wma|aiff?)$", "${1}"
        )
    odd = column.str.contains(r"(^|/)\.{0,2}(/|$)") if name == "relpath" else column.str.contains(r"/\.{0,2}(/|$)")
    one: Callable[[str], str] = normal_relpath if name == "relpath" else os.path.normpath
    odd = odd & ~column.str.contains("://", literal=True)
    return pl.when(odd).then(column.map_elements(one, return_dtype=pl.String)).otherwise(column)
