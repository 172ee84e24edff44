"""Why an input was refused: the documented codes of rejected.parquet."""

from __future__ import annotations

REASONS: dict[str, str] = {
    "empty": "the file holds no bytes",
    "vanished": "the file was there when the folder was scanned and is gone, or it changed while it was read",
    "unreadable": "the system refuses to read it: permissions, a dangling link, a folder, an I/O error",
    "not_media": "no demuxer that javisc allows recognises the content, whatever the name says",
    "corrupt": "it is a media file, but too little of it decodes: nothing at all, or more than a tenth is damaged",
    "unsupported": "no decoder for the codec, an encrypted stream, or a pixel or sample format that cannot be converted",
    "hdr_unsupported": "high dynamic range that cannot be tone-mapped",
    "no_video": "no moving picture: no video stream, or cover art only",
    "no_audio": "no sound while the picture runs (`--allow-silent` keeps such clips)",
    "too_short": "fewer frames than --min-frames",
    "too_large": "more pixels, channels or seconds than a worker may take memory for",
    "timestamps": "the presentation times leap, so that picture and sound have no common clock, or the file tells none",
    "resized": "the picture's size changes midway, and `--resized refuse` was given",
    "duplicate": "the same input was given twice, or two inputs have the same key",
    "no_caption": "no caption was found and --require-caption was given",
    "filtered": "a corpus rule or filter excludes it",
    "timeout": "the time limit per file ran out, twice",
    "crashed": "the worker died on it, twice",
    "internal": "javisc itself failed on it; the message is for a bug report",
}

#: More inputs than this refused as `internal` are no accident: the build says so by its exit code.
A_HANDFUL = 5


class Rejected(Exception):
    """An input that does not become a sample. `reason` is a key of `REASONS`; `message` is what the library below said."""

    def __init__(self, reason: str, message: str = "") -> None:
        assert reason in REASONS, reason
        text = " ".join(message.split()) or REASONS[reason]
        super().__init__(reason, text)
        self.reason = reason
        self.message = text[:500]

    def __str__(self) -> str:
        return f"{self.reason}: {self.message}"
