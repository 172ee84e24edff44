"""How a recipe says how shards are read (`data.reader.*` of every task) and pictures framed (`data.picture.*`)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from javisc.manifests.errors import UserError
from javisc.trainer.data.bytes.colour import ColourJitter
from javisc.trainer.data.bytes.reader import ReaderOptions
from javisc.trainer.engine.settings import setting


@dataclass
class ReadData:
    """How bytes come out of shards; see `ReaderOptions`. `storage_options` go to fsspec's driver, as its own names have them."""

    mode: str = setting(
        "auto",
        "pread of local files, ranged reads of a store, whole shards fetched once into cache, or what suits the place.",
        choices=("auto", "pread", "ranged", "whole"),
    )
    cache: str | None = setting(None, "The local folder for whole shards, which mode=whole needs.")
    cache_gb: float = setting(32.0, "Gigabytes (10^9) of whole shards that are kept.", above=0)
    retries: int = setting(4, "Tries after a failed read.", least=0, most=100)
    backoff: float = setting(0.2, "Seconds before the first of them; each waits twice as long.", least=0)
    threads: int = setting(8, "Ranged reads at a time.", least=1)
    open_files: int = setting(64, "Shards that stay open.", least=1)
    verify: bool = setting(True, "Check every member against its checksum.")
    storage_options: dict[str, Any] = setting({}, "What fsspec's driver of the store is given.")

    def options(self) -> ReaderOptions:
        """What the reader takes. Raises UserError: mode=whole without a cache."""
        if self.mode == "whole" and not self.cache:
            raise UserError("data.reader.mode=whole keeps shards in a folder: add data.reader.cache=FOLDER")
        return ReaderOptions(
            self.mode,  # type: ignore[arg-type]  # the setting's choices
            None if self.cache is None else Path(self.cache),
            round(self.cache_gb * 1e9),
            self.retries,
            self.backoff,
            self.threads,
            self.open_files,
            self.verify,
            dict(self.storage_options),
        )


@dataclass
class PictureData:
    """How pictures of a clip are framed and changed in training; held-out clips are cropped at their centre and left alone.

    `brightness`, `contrast` and `saturation` are strengths: factors are uniform in 1 ± strength; `hue` is in turns.
    """

    crop: str = setting("centre", "Where the bucket is cut out of a picture.", choices=("centre", "random"))
    resize: str = setting("cover", "Scale until the bucket is covered, or none: cut it out.", choices=("cover", "none"))
    antialias: bool = setting(False, "Filter when shrinking; the reference does not.")
    mirror: float = setting(0.0, "Share of clips that are mirrored.", least=0, most=1)
    brightness: float = setting(0.0, "How far brightness is moved.", least=0, most=1)
    contrast: float = setting(0.0, "How far contrast is moved.", least=0, most=1)
    saturation: float = setting(0.0, "How far saturation is moved.", least=0, most=1)
    hue: float = setting(0.0, "How far the hue is turned.", least=0, most=0.5)
    colour_share: float = setting(1.0, "Share of clips whose colours are moved.", least=0, most=1)

    def colour(self) -> ColourJitter | None:
        """How far colours are moved; None: not at all."""
        if not any((self.brightness, self.contrast, self.saturation, self.hue)) or not self.colour_share:
            return None
        return ColourJitter(self.brightness, self.contrast, self.saturation, self.hue, self.colour_share)
