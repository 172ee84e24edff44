"""Samples until a sound is finished: the same in memory and in a file."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from javisc.compiler.media.pcm import Pcm

STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("write"), st.integers(0, 40)),
        st.tuples(st.just("seek"), st.integers(0, 120)),
        st.tuples(st.just("resize"), st.integers(0, 120)),
    ),
    max_size=12,
)


@settings(deadline=None, max_examples=60)
@given(steps=STEPS, most=st.sampled_from([0, 16, 64, 10**6]))
def test_it_is_a_growing_row_of_bytes(
    steps: list[tuple[str, int]], most: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Against a bytearray. After a resize, the place is not told: the next write seeks first."""
    path = tmp_path_factory.mktemp("pcm") / "sound.pcm"
    pcm, plain, at = Pcm(path, most), bytearray(), 0
    for number, (what, value) in enumerate(steps):
        if what == "write":
            content = bytes([number + 1]) * (2 * value)
            pcm.seek(at)
            pcm.write(content)
            if content:
                plain.extend(bytes(max(0, at - len(plain))))
                plain[at : at + len(content)] = content
            at += len(content)
        elif what == "seek":
            pcm.seek(at := 2 * value)
        else:
            pcm.resize(2 * value)
            plain = plain[: 2 * value] + bytes(max(0, 2 * value - len(plain)))
    if plain:
        np.testing.assert_array_equal(pcm.samples(), np.frombuffer(bytes(plain), "<i2"))
    assert not path.exists() or most < 10**6
    pcm.close()
    assert not path.exists()
