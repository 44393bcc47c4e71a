"""What an examination found."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal, TypeAlias

State: TypeAlias = Literal["ok", "warning", "missing"]


@dataclass(frozen=True)
class Finding:
    """One line of the report.

    Attributes:
        what: the thing looked at, such as `torch` or `disk`.
        state: `missing` is what commands cannot do without.
        found: what is there, in words.
        do: what to do about it; empty where nothing is.
    """

    what: str
    state: State
    found: str
    do: str = ""


def guarded(what: str, look: Callable[[], Iterator[Finding]], state: State, do: str) -> list[Finding]:
    """The findings of `look`; what it raises becomes one of `state`, after those that it had."""
    found: list[Finding] = []
    try:
        found.extend(look())
    except Exception as error:
        # Broken installations fail in ways of their own: their own words, in one line, say most.
        reason = " ".join(str(error).split())[:200]
        found.append(Finding(what, state, f"{type(error).__name__}: {reason}", do))
    return found
