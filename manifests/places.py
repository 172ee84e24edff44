"""Places outside this machine that may be asked: those the user named, and no others.

A view or table can come from anywhere, and its column `dataset` names where its samples lie. Left to itself it could send its
reader to any address. So a URL in that column is followed only where the user named its host or bucket: by opening something
there, or in the environment variable JAVISC_PLACES (URLs, separated by blanks), which worker processes inherit.
"""

from __future__ import annotations

import os
from urllib.parse import urlsplit

from javisc.manifests.errors import UserError

VARIABLE = "JAVISC_PLACES"


def remote(root: str) -> bool:
    """True for what is not opened as a plain local path: URLs, and chains of them (`zip::…`)."""
    return "://" in root or ("::" in root and not root.startswith("/"))


def name(url: str) -> None:
    """Remember that the user named a URL, here and in processes that are started from now on."""
    if remote(url) and not allowed(url):
        os.environ[VARIABLE] = f"{os.environ.get(VARIABLE, '')} {url}".strip()


def allowed(root: str) -> bool:
    """True for local paths, and for URLs on a host or in a bucket that the user named; a chain must be named as it stands."""
    if not remote(root):
        return True
    named = os.environ.get(VARIABLE, "").split()
    if "::" in root:
        return any(root == place or root.startswith(place.rstrip("/") + "/") for place in named)
    return any(_host(root) == _host(place) for place in named if "::" not in place)


def check(root: str) -> str:
    """The root, if it may be asked. Raises UserError."""
    if not allowed(root):
        raise UserError(
            f"samples of the table lie in {root}, which you did not name: if you trust it, say {VARIABLE}={root} and run the "
            "command again"
        )
    return root


def _host(url: str) -> tuple[str, str]:
    try:
        parts = urlsplit(url)
    except ValueError:
        return "", url
    return parts.scheme.lower(), parts.netloc
