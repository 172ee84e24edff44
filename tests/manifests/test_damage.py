"""Damaged tables: whatever byte is wrong, a reader of tables gets rows or one line, and the process lives."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from javisc.manifests.damage import damaged, written
from javisc.manifests.parquet_sizes import check_sizes

#: In a process of its own, since polars aborts at some sizes: every byte, three kinds of damage, through each reader.
EVERY_BYTE = """
import sys
from pathlib import Path
import polars as pl
from javisc.compiler.fields.table import read as read_annotations
from javisc.manifests.damage import POLARS_FAULTS, damaged
from javisc.manifests.errors import UserError
from javisc.manifests.io import scan_table
from javisc.manifests.rows import Faults, read_rows

content, path = Path(sys.argv[1]).read_bytes(), Path(sys.argv[2])
said = 0
for place in range(len(content)):
    for mask in (0x01, 0x80, 0x10):
        changed = bytearray(content)
        changed[place] ^= mask
        path.write_bytes(changed)
        try:
            if place % 3 == 0:
                scan_table(str(path)).collect()
            elif place % 3 == 1:
                read_annotations(str(path), "annotate")
            else:
                list(read_rows(str(path), Faults(str(path))))
        except UserError:
            said += 1
        except POLARS_FAULTS as error:
            damaged(error)
print("read to the end", said)
"""


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tables") / "table.parquet"
    rows = range(20)
    pl.DataFrame({"key": [f"k{i}" for i in rows], "x": [i / 3 for i in rows]}).write_parquet(path)
    return path


def test_no_damaged_byte_takes_the_process_down(table: Path, tmp_path: Path) -> None:
    arguments = [str(table), str(tmp_path / "damaged.parquet")]
    ended = subprocess.run([sys.executable, "-P", "-c", EVERY_BYTE, *arguments], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr[-2000:]
    assert int(ended.stdout.split()[-1]) > 1000


@settings(max_examples=25, deadline=None)
@given(
    rows=st.integers(0, 500),
    version=st.sampled_from(["1.0", "2.0"]),
    packed=st.sampled_from(["none", "snappy", "zstd"]),
    groups=st.integers(20, 1000),
    words=st.booleans(),
)
def test_the_tables_that_others_write_pass(rows: int, version: str, packed: str, groups: int, words: bool) -> None:
    table = pa.table(
        {
            "key": [str(i) for i in range(rows)],
            "same": ["x"] * rows,
            "none": pa.array([None] * rows, pa.float64()),
            "list": [list(range(i % 4)) for i in range(rows)],
            "struct": [{"a": i, "b": None if i % 2 else "b"} for i in range(rows)],
        },
    )
    stream = io.BytesIO()
    pq.write_table(
        table, stream, data_page_version=version, compression=packed, row_group_size=groups, use_dictionary=words,
        data_page_size=1000,
    )  # fmt: skip
    check_sizes(stream)
    stream = io.BytesIO()
    pl.DataFrame(table).write_parquet(stream, row_group_size=groups, data_page_size=1000)
    check_sizes(stream)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "too short"),
        (b"PAR1" + b"\0" * 20, "does not end"),
        (b"PAR1" + b"\0" * 4 + (1 << 31).to_bytes(4, "little") + b"PAR1", "footer is said to have"),
        (b"PAR1" + b"\x19\xfc\xff\xff\xff\x0f" + (6).to_bytes(4, "little") + b"PAR1", "a list of"),
        (b"PAR1" + b"\x18\xff\xff\x0f" + (4).to_bytes(4, "little") + b"PAR1", "a text of"),
        (b"PAR1" + b"\x1c" * 40 + (40).to_bytes(4, "little") + b"PAR1", "nested deeper"),
        (b"PAR1" + b"\x15" + b"\xff" * 20 + (21).to_bytes(4, "little") + b"PAR1", "has no end"),
    ],
)
def test_what_is_wrong_is_said(content: bytes, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        check_sizes(io.BytesIO(content))


def test_a_full_disk_is_no_damage() -> None:
    full = Path("/dev/full")
    with pytest.raises(OSError, match="No space left on device"), written(full):
        pl.DataFrame({"x": range(9)}).lazy().sink_parquet(full)
    told = damaged(pl.exceptions.ComputeError("parquet: underlying IO error: No space left on device (os error 28)"))
    assert "no room is left" in str(told)
