"""The settings of `javisc build prior`'s stages, each declared once: the command's options are made of them, and what is a place
is known where work goes to other machines.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from javisc.manifests.errors import UserError
from javisc.manifests.io import absolute


@dataclass(frozen=True)
class Setting:
    """A stage's argument `name`. kind: str, int (`least` or more), float, bool (a flag) or the words that are allowed.

    default: what stands where nothing is given, for the help; the stage itself has the same. place: a path or URL. many: it may
    be given several times. goes_with: the setting without which it says nothing. option: how the command calls it.
    """

    name: str
    help: str
    kind: Any = str
    default: Any = None
    metavar: str | None = None
    place: bool = False
    many: bool = False
    goes_with: str | None = None
    option: str = ""
    least: int = 1

    @property
    def flag(self) -> str:
        """The option as it is typed."""
        return self.option or f"--{self.name.replace('_', '-')}"


PRECISIONS = ("auto", "fp32", "fp16", "bf16")
SEED = Setting("seed", "Of whatever is drawn, with each clip's key.", int, 0, least=0)


def _network(name: str, help_: str) -> Setting:
    return Setting(name, help_, metavar="PATH", place=True)


def _precision(network: str) -> Setting:
    return Setting("precision", "auto: bf16 on a GPU, fp32 on a CPU.", PRECISIONS, "auto", goes_with=network)


#: By stage, in the order of the help.
SETTINGS: dict[str, tuple[Setting, ...]] = {
    "unpaired": (
        _network("generator", "A folder of diffusers' with a text-to-sound pipeline."),
        Setting(
            "baseline",
            "Without weights: the sound of a clip with another caption, or the clip's own spectrum with random phases.",
            ("other", "phase"),
        ),
        Setting("match_duration", "Cut sounds to their clip's length.", bool, False),
        Setting("steps", "Steps of denoising.", int, 50, goes_with="generator"),
        Setting("guidance", "Scale of guidance; the pipeline's own where nothing is said.", float, goes_with="generator"),
        Setting("negative", "What the sound shall not be.", metavar="TEXT", goes_with="generator"),
        Setting("batch_size", "Captions of a batch.", int, 8, goes_with="generator"),
        _precision("generator"),
        SEED,
    ),
    "separate": (
        _network("separator", "A folder with AudioSep's checkpoint and CLAP's text tower."),
        Setting(
            "baseline",
            "Without weights: harmonic and percussive parts, or four spectra that the sound is made of.",
            ("hpss", "nmf"),
        ),
        Setting(
            "descriptions",
            "What to look for in each clip: a table, or JSON {name: [descriptions]}; phrases of its caption without it.",
            metavar="TABLE",
            place=True,
            goes_with="separator",
        ),
        Setting(
            "activity",
            "A folder of transformers' PE-AV that says where each description is heard; the source's level without it.",
            metavar="PATH",
            place=True,
            goes_with="separator",
        ),
        SEED,
    ),
    "masklets": (
        Setting(
            "annotated",
            "V_manual.json, V_auto.json, both, or the first of them that is there.",
            ("first", "manual", "auto", "both"),
            "first",
            option="--annotations",
        ),
        _network(
            "segmenter",
            "A folder of transformers' Sam2Video, EdgeTamVideo or Sam3Video; masks are interpolated without it.",
        ),
        Setting(
            "text",
            "What to look for in the videos, instead of annotations; may be given several times.",
            metavar="TEXT",
            many=True,
            goes_with="segmenter",
        ),
        Setting(
            "detector",
            "A folder of transformers' GroundingDino, which finds the texts for Sam2Video and EdgeTamVideo.",
            metavar="PATH",
            place=True,
            goes_with="text",
        ),
        Setting("score", "What a find must score; the network's own where nothing is said.", float, goes_with="text"),
        _precision("segmenter"),
    ),
}  # fmt: skip


def given(stage: str, said: Mapping[str, Any]) -> dict[str, Any]:
    """The stage's settings among what the command was given, without those that say nothing. Raises UserError for one that
    needs another."""
    found = {}
    for each in SETTINGS[stage]:
        value = list(said.get(each.name) or ()) if each.many else said.get(each.name)
        if not (value is None or value is False or value in ("", [])):  # 0 says something
            found[each.name] = value
    by_name = {each.name: each for each in SETTINGS[stage]}
    for name in found:
        wanted = by_name[name].goes_with
        if wanted is not None and wanted not in found:
            raise UserError(f"{by_name[name].flag} goes with {by_name[wanted].flag}: give both, or leave it out")
    return found


def everywhere(stage: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings as another process, or another machine that sees the same places, takes them: no path is relative."""
    places = {"dataset", "raw", *(each.name for each in SETTINGS[stage] if each.place)}
    return {
        name: value
        if name not in places or not value
        else [absolute(str(one)) for one in value]
        if isinstance(value, list)
        else absolute(str(value))
        for name, value in settings.items()
    }
