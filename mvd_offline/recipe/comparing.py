"""What differs between recipes, key by key; and which of those that ship a recipe comes from."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final

import yaml

from mvd_offline.recipe.kinds import Recipe
from mvd_offline.recipe.loading import load_recipe, recipe_header, shipped_recipes


class _Absent:
    """The value of a key whose section a recipe does not have."""

    def __repr__(self) -> str:
        return "absent"


ABSENT: Final = _Absent()
_NAMES: Final = frozenset({"kind", "name"})


@dataclass(frozen=True)
class Difference:
    """A dotted key, and the value of each recipe; `ABSENT` where one has no such section."""

    key: str
    values: tuple[Any, ...]


@dataclass(frozen=True)
class Base:
    """The recipe that ships from which another differs least, and in what: values of this one, then of that one."""

    name: str
    header: str
    differences: tuple[Difference, ...]


def flat(data: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Values by dotted key; an empty mapping is a value."""
    found: dict[str, Any] = {}
    for key, value in data.items():
        if isinstance(value, Mapping) and value:
            found |= flat(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value
    return found


def flat_recipe(recipe: Recipe) -> dict[str, Any]:
    """Every key of a recipe, defaults included."""
    return flat(recipe.model_dump(mode="json"))


def differences(recipes: Sequence[Mapping[str, Any]]) -> tuple[Difference, ...]:
    """Keys of flat recipes (`flat_recipe`) whose values are not the same in all, but for their names.

    Where a section is missing in one of them, its keys are listed, and not the section; but not those that are null in
    all others.
    """
    # In the order of the recipes: sections stay together.
    keys = dict.fromkeys(key for recipe in recipes for key in recipe if key not in _NAMES)
    sections = {".".join(parts[:depth]) for parts in (key.split(".") for key in keys) for depth in range(1, len(parts))}
    found = []
    for key in keys:
        values = tuple(recipe.get(key, ABSENT) for recipe in recipes)
        said = {repr(value) for value in values if value is not ABSENT}
        if key not in sections and (len(said) > 1 or (ABSENT in values and said != {"None"})):
            found.append(Difference(key, values))
    return tuple(found)


def base_of(recipe: Recipe) -> Base | None:
    """The shipped recipe of the same kind that has this one's name, or else the one with the fewest differences.

    None where none of this kind ships.
    """
    mine = flat_recipe(recipe)
    candidates = {name: path for name, path in shipped_recipes().items() if _line(path, "kind") == recipe.kind}
    named = {name: path for name, path in candidates.items() if _line(path, "name") == recipe.name}
    found = [
        Base(name, _opening(_text(path)), differences([mine, _flat_shipped(path)]))
        for name, path in (named or candidates).items()
    ]
    return min(found, key=lambda base: len(base.differences), default=None)


def value_in_words(value: Any) -> str:
    """A recipe's value as its file would have it, on one line."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(value_in_words, value))}]"
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{key}: {value_in_words(entry)}' for key, entry in value.items())}}}"
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _opening(text: str) -> str:
    """The first sentences of a recipe's header: up to the next line that begins with a name, such as `Hardware:`."""
    first, *others = [*recipe_header(text), ""]
    more = itertools.takewhile(lambda line: line and not re.match(r"[A-Z][\w ]*:", line), others)
    return " ".join([first, *more])


@cache
def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8")


@cache
def _flat_shipped(path: Path) -> dict[str, Any]:
    # libyaml takes a tenth of the time, but ends the process where brackets are nested a hundred thousand deep: it is
    # for the files that ship only.
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)(_text(path))
    try:
        return flat_recipe(load_recipe(loader.get_single_data()))
    finally:
        loader.dispose()


def _line(path: Path, key: str) -> str:
    # A line of the file says it: parsing YAML takes most of the time that this may take.
    start = f"{key}:"
    return next((line.removeprefix(start).strip() for line in _text(path).splitlines() if line.startswith(start)), "")
