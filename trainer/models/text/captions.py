"""Cleaning captions before a text encoder, as JavisDiT does at inference (and, when asked, in training too)."""

from __future__ import annotations

import html
import re
import unicodedata

_URL = re.compile(r"\b(?:https?:\S*|www\.\S+|[a-z0-9-]+\.(?:com|co|ru|net|org|edu|gov|it)\b\S*)", re.IGNORECASE)
_TAG = re.compile(r"<[^>]{0,200}>")
_HANDLE = re.compile(r"@[\w\d]+\b")
_CJK = re.compile(r"[⺀-⻿぀-ヿ㇀-㇯ㇰ-ㇿ㈀-㋿㌀-㏿㐀-䶿䷀-䷿一-鿿]+")
_DASHES = re.compile(r"[֊־᐀᠆‐-―⸗⸚⸺⸻⹀〜〰゠︱︲﹘﹣－]+")
_QUOTES = str.maketrans({"`": "'", "´": "'", "«": '"', "»": '"', "“": '"', "”": '"', "¨": '"', "‘": "'", "’": "'"})
_IP = re.compile(r"\d{1,3}\.\d{1,3}\.\d{1,3}\.\d{1,3}")
_NUMBERS = re.compile(r"#\d{1,3}\b|#\d{5,}\b|\b\d{6,}\b")
_FILE = re.compile(r"[\S]+\.(?:png|jpe?g|bmp|webp|eps|pdf|apk|mp4)\b", re.IGNORECASE)
_IDS = re.compile(r"\b[a-z]{0,3}\d{4,}[a-z]{0,3}\d*\b|\b[a-z]+\d+[a-z]+\d+\w*\b", re.IGNORECASE)
_SIZE = re.compile(r"\b\d+\s*[xх×]\s*\d+\b", re.IGNORECASE)
_PHRASES = re.compile(
    r"(?:worldwide\s+)?(?:free\s+)?shipping|(?:free\s)?download(?:\sfree)?|\bclick\b\s(?:for|on)\s\w+|\bpage\s+\d+\b",
    re.IGNORECASE,
)
_RUNS = re.compile(r"([\"'.?!,:;_/\\|*~^-])\1+")


def clean_once(text: str) -> str:
    """Lower-case, without addresses, mark-up, handles, CJK characters, file names, ids, sizes and runs of punctuation."""
    text = html.unescape(html.unescape(text)).replace("<person>", "person").lower()
    text = unicodedata.normalize("NFC", text)
    for pattern in (_URL, _TAG, _HANDLE, _CJK):
        text = pattern.sub("", text)
    text = _DASHES.sub("-", text).translate(_QUOTES)
    text = text.replace("&quot;", "").replace("&amp", "").replace("\\n", " ")
    for pattern in (_IP, _NUMBERS, _FILE):
        text = pattern.sub("", text)
    text = _RUNS.sub(r"\1", text)
    if len(re.findall(r"[-_]", text)) > 3:
        text = re.sub(r"[-_]", " ", text)
    for pattern in (_PHRASES, _IDS, _SIZE):
        text = pattern.sub(" ", text)
    text = re.sub(r"\b\s+:\s+", ": ", text)
    text = re.sub(r"\s+", " ", text).strip()
    text = re.sub(r"^[\"']([\s\S]+)[\"']$", r"\1", text)
    text = re.sub(r"^['_,\-:;]|['_,\-:\-+]$", "", text)
    return re.sub(r"^\.\S+$", "", text).strip()


def clean(text: str) -> str:
    """`clean_once`, twice: removals may join what has to go."""
    return clean_once(clean_once(text))


def with_score(text: str, score: float | None = 6.5) -> str:
    """Append the aesthetic score that the video model was trained to see, unless the text names one."""
    if score is None or "aesthetic score:" in text:
        return text
    return f"{text} aesthetic score: {score:.1f}."
