"""Addresses of a hub as people paste them. Knows their forms; asks nobody."""

import glob
import os
import re
from dataclasses import dataclass, replace
from urllib.parse import unquote

from m7b.errors import UsageError
from m7b.hub.layouts import DownloadFormat
from m7b.hub.plan import Wish

_PART = r"[A-Za-z0-9][\w.-]{,95}"
_HUB_ID = re.compile(f"{_PART}/{_PART}")
_TAGGED = re.compile(rf"({_PART}/{_PART}):([\w.-]+)")
_HOSTS = ("huggingface.co", "hf.co", "www.huggingface.co")
_NO_MODELS = ("api", "blog", "collections", "datasets", "docs", "models", "papers", "spaces")


@dataclass(frozen=True, slots=True)
class HubAddress:
    """A repository of a hub, and what of it is meant, as far as the address says so.

    `include` is a pattern for the names of GGUF files.
    """

    repo_id: str
    revision: str | None = None
    include: str | None = None


def parse_address(text: str) -> HubAddress | None:
    """Read `org/x`, `org/x:Q4_K_M`, or an address on the hub's host; None where `text` is none of these.

    Raises:
        UsageError: it leads to something else on the hub than a model.
    """
    scheme, bare = _split_scheme(text.strip())
    host, _, rest = bare.partition("/")
    ours = re.sub(r"^\w+://|/.*", "", os.environ.get("HF_ENDPOINT", "").lower())
    if host.lower() not in (*_HOSTS, ours or None):
        return None if scheme in ("http", "https") else _read_id(bare.rstrip("/"))
    org, _, rest = re.split(r"[?#]", rest, maxsplit=1)[0].strip("/").partition("/")
    name, _, rest = rest.partition("/")
    found = _read_id(f"{org}/{name}")
    if org in _NO_MODELS or found is None:
        raise UsageError(f"{text} is no model of a hub", hint="it looks like https://huggingface.co/org/name")
    kind, _, rest = rest.partition("/")
    if kind not in ("tree", "blob", "resolve", "raw") or not rest:
        return found
    revision, file = (unquote(part) for part in rest.split("/", 1)) if "/" in rest else (unquote(rest), "")
    found = replace(found, revision=None if revision == "main" else revision)
    if file and kind == "tree":
        return replace(found, include=f"{glob.escape(file)}/*")
    return replace(found, include=glob.escape(file)) if file.lower().endswith(".gguf") else found


def expand_address(wish: Wish) -> Wish:
    """Turn an address on the hub into the wish for what it leads to.

    Raises:
        UsageError: options that the address answers already are given too.
    """
    found = parse_address(wish.reference or "") if wish.source in (None, "hub") else None
    if found is None:
        return wish
    is_file = found.include is not None and not found.include.endswith("/*")
    format = DownloadFormat.GGUF if is_file else None
    for name, value in (("revision", found.revision), ("include", found.include), ("format", format)):
        if value and getattr(wish, name) not in (None, value):
            raise UsageError(f"the address says what --{name} says too", hint=f"leave out --{name}")
    return replace(
        wish,
        reference=found.repo_id,
        revision=found.revision or wish.revision,
        include=found.include or wish.include,
        format=format or wish.format,
    )


def _split_scheme(text: str) -> tuple[str, str]:
    """Split `https://` or `hf://` off; a path has swallowed one of the slashes."""
    found = re.match(r"(?i)(https?|hf):/+", text)
    return (found[1].lower(), text[found.end() :]) if found else ("", text)


def _read_id(text: str) -> HubAddress | None:
    """Read `org/x`, with the name of a quantization or without."""
    if _HUB_ID.fullmatch(text):
        return HubAddress(text)
    found = _TAGGED.fullmatch(text)
    if found is None:
        return None
    return HubAddress(found[1], include=None if found[2] == "latest" else f"*{glob.escape(found[2])}[-.]*")
