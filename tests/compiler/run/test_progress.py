"""What a build says while it runs: numbers for people, a line of progress with the time that is left, and a log for machines."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest

from javisc.compiler.run.engine import Event, UnitResult
from javisc.compiler.run.progress import Reporter, size, span

SIZES = {0: "0 bytes", 999: "999 bytes", 1000: "1 kB", 512_000_000: "512 MB", 1_234_000_000: "1.23 GB", 5e15: "5000 TB"}
SPANS = {0.04: "0.0 s", 9.5: "9.5 s", 42: "42 s", 89: "89 s", 90: "2 min", 5399: "90 min", 7500: "2 h 05 min"}


@pytest.mark.parametrize(("words", "table"), [(size, SIZES), (span, SPANS)], ids=["bytes", "seconds"])
def test_numbers_for_people(words: object, table: dict[float, str]) -> None:
    assert callable(words) and {number: words(number) for number in table} == table


def test_a_line_says_what_is_done_how_fast_and_how_long_it_will_take(tmp_path: Path) -> None:
    """Half of the bytes in twenty seconds: twenty are left, however many of the inputs those are."""
    now, out = [100.0], io.StringIO()
    with Reporter(out, tmp_path / "log", clock=lambda: now[0]) as reporter:
        reporter.start(4, 80_000_000, 2, 0)
        reporter.event(Event("a.mp4", 10_000_000, 30.0, 1.0))
        assert out.getvalue() == "", "a line every ten seconds, not for every input"
        now[0] += 20
        reporter.event(Event("b.mp4", 10_000_000, 0.0, 1.0, "corrupt", "why"))
        reporter.event(Event("c.mp4", 20_000_000, 10.0, 1.0))
        assert out.getvalue() == "2/4 1 clips, 1.5 s of media per second, 1.0 MB/s, 1 rejected, 60 s left\n"
        assert reporter.line() == "2 clips, 2.0 s of media per second, 2.0 MB/s, 1 rejected, 20 s left"
        reporter.unit(UnitResult(0, 2, 700, {"corrupt": 1}))
        reporter.say("a note")
    assert out.getvalue().endswith("left\na note\n")
    told = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    assert [row["event"] for row in told] == ["start", "input", "input", "input", "shard", "note"]
    assert (told[0]["inputs"], told[0]["shards"], told[2]["reason"], told[4]["rejected"]) == (
        4,
        2,
        "corrupt",
        {"corrupt": 1},
    )
    with Reporter(out, tmp_path / "log") as reporter:
        reporter.say("of another build")
    assert len((tmp_path / "log").read_text().splitlines()) == 7, "a log goes on, whichever build writes it"
