"""Recipes in and out of YAML: found by name, overridden, explained where they are wrong, dumped."""

from __future__ import annotations

import copy
import difflib
import itertools
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from mvd_offline.errors import RecipeError, nearest
from mvd_offline.recipe.kinds import DistillRecipe, FinetuneRecipe, PretrainRecipe, Recipe

R = TypeVar("R", "DistillRecipe", "PretrainRecipe", "FinetuneRecipe")
_KINDS: Mapping[str, type[DistillRecipe] | type[PretrainRecipe] | type[FinetuneRecipe]] = {
    "distill": DistillRecipe,
    "pretrain": PretrainRecipe,
    "finetune": FinetuneRecipe,
}

_LISTS = ("literal_error", "enum")
"""Kinds of pydantic's errors whose message lists what is allowed."""


def load_recipe(source: str | Path | Mapping[str, Any], overrides: Iterable[str] = ()) -> Recipe:
    """Read, override and validate a recipe.

    Args:
        source: a YAML file, the name of a recipe that ships (`distill/vit_s_from_vit_b_k400`), or a mapping.
        overrides: `dotted.path=value` strings; values are YAML.

    Raises:
        RecipeError: no such file, not YAML, an unknown key (with the nearest known name), or a bad value.
    """
    if isinstance(source, Mapping):
        data, origin = copy.deepcopy(dict(source)), "recipe"
    else:
        path = find_recipe(source)
        data, origin = _read_yaml(path), str(source)
    for override in overrides:
        _apply(data, override)
    kind = data.get("kind")
    model = _KINDS.get(kind) if isinstance(kind, str) else None
    if model is None:
        raise RecipeError(f"{origin}: kind is {kind!r}; allowed: {', '.join(_KINDS)}")
    try:
        return model.model_validate(data)
    except ValidationError as error:
        raise RecipeError(_explain(error, model, origin)) from None


def load_distill(source: str | Path | Mapping[str, Any], overrides: Iterable[str] = ()) -> DistillRecipe:
    """`load_recipe`, refusing other kinds."""
    return _of_kind(load_recipe(source, overrides), DistillRecipe, source)


def load_pretrain(source: str | Path | Mapping[str, Any], overrides: Iterable[str] = ()) -> PretrainRecipe:
    """`load_recipe`, refusing other kinds."""
    return _of_kind(load_recipe(source, overrides), PretrainRecipe, source)


def load_finetune(source: str | Path | Mapping[str, Any], overrides: Iterable[str] = ()) -> FinetuneRecipe:
    """`load_recipe`, refusing other kinds."""
    return _of_kind(load_recipe(source, overrides), FinetuneRecipe, source)


def dump_recipe(recipe: Recipe) -> str:
    """The resolved recipe as YAML; loading it gives an equal recipe."""
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def shipped_recipes() -> dict[str, Path]:
    """Name (`folder/stem`) to file of every recipe that comes with the package."""
    root = Path(__file__).parents[1] / "configs"
    return {path.relative_to(root).with_suffix("").as_posix(): path for path in sorted(root.glob("*/*.yaml"))}


def find_recipe(source: str | Path) -> Path:
    """The YAML file that `source` means: a path, or the name of a recipe that ships.

    Raises:
        RecipeError: neither; the nearest names are given.
    """
    path = Path(source)
    if path.is_file():
        return path
    shipped = shipped_recipes()
    if str(source) in shipped:
        return shipped[str(source)]
    near = difflib.get_close_matches(str(source), shipped, n=3, cutoff=0.4)
    hint = f" Did you mean {' or '.join(near)}?" if near else ""
    raise RecipeError(
        f"{source}: no such recipe file, and none of that name ships.{hint} `mvd-offline recipes list` shows them all."
    )


def recipe_header(text: str) -> list[str]:
    """The comment lines that open a recipe's file, without the number signs; the first says what it reproduces."""
    lines = itertools.takewhile(lambda line: line.startswith("#"), text.splitlines())
    return [line.lstrip("#").strip() for line in lines]


def _of_kind(recipe: Recipe, expected: type[R], source: object) -> R:
    if not isinstance(recipe, expected):
        wanted = next(kind for kind, model in _KINDS.items() if model is expected)
        raise RecipeError(f"{source}: this is a {recipe.kind} recipe; a {wanted} recipe is needed here")
    return recipe


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path}: not readable as YAML: {error}") from None
    if not isinstance(data, dict):
        raise RecipeError(f"{path}: a recipe is a YAML mapping, not {type(data).__name__}")
    return data


def _apply(data: dict[str, Any], override: str) -> None:
    dotted, separator, text = override.partition("=")
    keys = dotted.split(".")
    if not separator or not all(keys):
        raise RecipeError(f"--set {override!r}: write it as dotted.path=value, for example --set optim.epochs=10")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        raise RecipeError(f"--set {override!r}: {text!r} is not a YAML value") from None
    node = data
    for key in keys[:-1]:
        child = node.setdefault(key, {})
        if not isinstance(child, dict):
            raise RecipeError(f"--set {override!r}: {key} is a value, not a section")
        node = child
    node[keys[-1]] = _number(value)


def _number(value: Any) -> Any:
    # YAML 1.1 reads 1e-4 (no dot) as a string; people mean the number.
    if isinstance(value, str) and re.fullmatch(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+", value):
        return float(value)
    return value


def _explain(error: ValidationError, model: type[BaseModel], origin: str) -> str:
    lines = []
    for item in error.errors():
        path = [str(part) for part in item["loc"] if part != "[key]"]
        dotted = ".".join(path) or "recipe"
        if item["type"] == "extra_forbidden":
            known = _known_keys(model, path[:-1])
            near = difflib.get_close_matches(path[-1], known, n=1)
            hint = f"; did you mean {near[0]}? Keys of this section:" if near else "; keys of this section:"
            hint += f" {', '.join(known)}"
            lines.append(f"{dotted} is no known key{hint}")
        elif item["type"] == "missing":
            lines.append(f"{dotted} is missing")
        else:
            message = item["msg"].removeprefix("Value error, ")
            shown = f" (found {item['input']!r})" if not isinstance(item["input"], dict) else ""
            # The values of a closed list stand in quotes.
            meant = nearest(str(item["input"]), re.findall(r"'([^']*)'", message)) if item["type"] in _LISTS else ""
            lines.append(f"{dotted}: {message[:1].lower()}{message[1:]}{shown}{'.' if meant else ''}{meant}")
    return f"{origin}: " + "; ".join(lines)


def _known_keys(model: type[BaseModel], path: list[str]) -> list[str]:
    """Field names of the section at `path`; an empty list where the path leaves the models."""
    current: Any = model
    for part in path:
        fields = getattr(current, "model_fields", {})
        if part not in fields:
            # A mapping's key, such as teachers.image: its values are the section.
            continue
        current = fields[part].annotation
        arguments = getattr(current, "__args__", ())
        if not isinstance(current, type) or arguments:
            sections = [a for a in arguments if isinstance(a, type) and issubclass(a, BaseModel)]
            current = sections[0] if sections else None
    return list(getattr(current, "model_fields", {}))
