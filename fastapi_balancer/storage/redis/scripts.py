"""The Lua steps, read from their files."""

from __future__ import annotations

from hashlib import sha1
from pathlib import Path

FOLDER = Path(__file__).parent.parent / "scripts"
ON_SLOTS = ("sync", "attach", "beat", "reap", "detach", "capacity")
ON_RECORDS = ("publish", "lock", "renew", "unlock", "save_fenced")


def source(name: str) -> str:
    """The text of one step, with what the steps on slots share put before it."""
    text = (FOLDER / f"{name}.lua").read_text()
    return (FOLDER / "_lib.lua").read_text() + text if name in ON_SLOTS else text


SOURCES = {name: source(name) for name in (*ON_SLOTS, *ON_RECORDS)}
SHA = {name: sha1(text.encode()).hexdigest() for name, text in SOURCES.items()}


def slots_keys(service: str, scope: str, endpoint: str) -> tuple[str, str, str]:
    """The keys of one endpoint's slots, all in one hash slot of a cluster.

    The number is the protocol's version: two versions of it never share slots.
    """
    tag = f"fb1:{{{service}:{scope}:{endpoint}}}:"
    return tag + "m", tag + "q", tag + "h"


def record_key(service: str, name: str) -> str:
    """The key of a small record of a service, all in one hash slot of a cluster."""
    return f"fb1:{{{service}}}:{name}"
