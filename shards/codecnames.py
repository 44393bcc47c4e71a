"""Names of codecs whose settings, or what was learnt for them, are part of the name."""

from __future__ import annotations

import re
from typing import Final

KLT_NAME: Final = re.compile(r"(klt-[0-9.e-]+)-([0-9a-f]{64})")
"""`klt-ERROR-SHA256`: the relative error that was asked for, and the hash of the basis."""


def klt_family(relative_error: float) -> str:
    """What the names of all bases of one setting begin with: `klt-0.08`."""
    return f"klt-{relative_error:g}"


def codec_family(name: str) -> str:
    """A codec's name without what was learnt: `klt-0.08` of `klt-0.08-SHA256`; other names as they are."""
    found = KLT_NAME.fullmatch(name)
    return name if found is None else found[1]
