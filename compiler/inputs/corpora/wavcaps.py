"""WavCaps: weakly labelled captions of four sources.

The three published blacklists name clips that other corpora hold too. They become splits, so that nothing leaks unseen and
each can be chosen or filtered: `test_ac` (test clips of AudioCaps and Clotho), `train_ac` (their other clips),
`train_zero_shot` (clips of UrbanSound8K, ESC-50 and VGGSound), `train` (all others). Without blacklists all is `train`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from javisc.compiler.inputs.annotations import Json, Problems
from javisc.compiler.inputs.corpora import Corpus, Row
from javisc.compiler.inputs.identity import normal, without_extension, youtube_film
from javisc.manifests.errors import UserError

#: Source → (its JSON, its name in the blacklists, folders its sounds are known to lie in).
PARTS = {
    "AudioSet_SL": ("as_final.json", "AudioSet"),
    "BBC_Sound_Effects": ("bbc_final.json", "BBC_Sound_Effects"),
    "SoundBible": ("sb_final.json", "SoundBible"),
    "FreeSound": ("fsd_final.json", "FreeSound"),
}
FILES = {
    part: Json((f"json_files/{part}/{name}", f"json_files/{name}", f"json_files/{part}/{part}.json"))
    for part, (name, _) in PARTS.items()
}
#: In this order: the first that names a clip decides.
BLACKLISTS = {
    "test_ac": Json(("json_files/blacklist/blacklist_exclude_test_ac.json",)),
    "train_ac": Json(("json_files/blacklist/blacklist_exclude_all_ac.json",)),
    "train_zero_shot": Json(("json_files/blacklist/blacklist_exclude_ub8k_esc50_vggsound.json",)),
}


class WavCaps(Corpus):
    name = "wavcaps"
    folders = ("WavCaps", "wavcaps")
    kinds = frozenset({"audio"})
    layout = (
        "json_files/{as,bbc,sb,fsd}_final.json or json_files/SOURCE/*_final.json (data[].id, caption), "
        "json_files/blacklist/*.json; sounds below AudioSet_SL_flac, "
        "BBC_Sound_Effects_flac, SoundBible_flac, FreeSound_flac (or without _flac): ID.flac"
    )
    sources = (tuple(FILES.values()),)

    def rows(self, root: Path, files: Iterable[str], problems: Problems) -> Iterator[Row]:
        listed = {split: _blacklist(source, root) for split, source in BLACKLISTS.items() if source.find(root)}
        for part, source in FILES.items():
            path = source.find(root)
            if path is None:
                continue
            other = PARTS[part][1]
            for number, item in source.items(root, "data", problems):
                name, caption = item.get("id"), item.get("caption")
                if not isinstance(name, str) or not isinstance(caption, str):
                    problems.add(path, number, f"item {number}: 'id' and 'caption' must be texts")
                    continue
                clip = without_extension(name)
                split = next((split for split, names in listed.items() if (other, clip) in names), "train")
                yield Row(f"{part}/{normal(clip)}", (caption,), split=split, where=(path, number))

    def identity(self, relpath: str) -> str | None:
        *folders, name = normal(relpath).split("/")
        part = next((folder for part in reversed(folders) if (folder := part.removesuffix("_flac")) in PARTS), None)
        return f"{part}/{name}" if part else None

    def film(self, identity: str) -> str | None:
        part, _, name = identity.partition("/")
        return youtube_film(name) if part == "AudioSet_SL" else f"freesound/{name}" if part == "FreeSound" else None


def _blacklist(source: Json, root: Path) -> set[tuple[str, str]]:
    """(source, clip) pairs; AudioSet's are written with `.wav`, Freesound's without."""
    value = source.value(root)
    if not isinstance(value, dict) or not all(isinstance(names, list) for names in value.values()):
        raise UserError(f"{source.need(root)}: is no blacklist: a mapping from source to a list of ids is expected")
    return {(part, without_extension(str(name))) for part, names in value.items() for name in names}


CORPORA = (WavCaps(),)
