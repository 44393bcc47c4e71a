"""The commands in the headers of the recipes that ship are commands of this program, in an order that works."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from mvd_offline.cli.main import load_command
from mvd_offline.recipe import load_recipe, recipe_header, shipped_recipes

WITH_COMMANDS = [name for name in shipped_recipes() if name.partition("/")[0] not in ("demo", "science")]
PROGRAM = re.compile(r"(?:[A-Z][^:`]*: )?(?:mvd-offline|accelerate launch -m mvd_offline) (?P<words>.*)")


def commands(name: str) -> list[list[str]]:
    """The words of each command in a recipe's header, without the program's name."""
    text = "\n".join(recipe_header(shipped_recipes()[name].read_text(encoding="utf-8")))
    lines = re.sub(r"\\\n\s*", "", text).splitlines()
    return [shlex.split(match["words"]) for line in lines if (match := PROGRAM.fullmatch(line.strip()))]


def parsed(words: list[str]) -> dict[str, Any]:
    """The options of a command, as the command line reads them; fails where it refuses one."""
    command, rest = load_command(words[0]), words[1:]
    while hasattr(command, "commands"):
        assert rest[0] in command.commands, f"{words[0]} has no {rest[0]}"
        command, rest = command.commands[rest[0]], rest[1:]
    return dict(command.make_context(words[0], list(rest)).params)


def places(options: dict[str, Any], *names: str) -> set[Path]:
    """The paths that options give, each once or several times."""
    given = [options.get(name) or [] for name in names]
    return {Path(place) for one in given for place in (one if isinstance(one, list | tuple) else [one])}


def reads(command: str, options: dict[str, Any]) -> set[Path]:
    """Catalogs and stores that a command needs; a teacher is added to the store of another recipe."""
    found = places(options, "stores")
    if command == "extract" and not options["teacher"]:
        found |= places(options, "store")
    if command in ("plan", "pretrain", "finetune", "evaluate"):
        found |= places(options, "videos")
    return found


@pytest.mark.parametrize("name", WITH_COMMANDS)
def test_the_commands_of_a_header_are_understood_and_follow_each_other(name: str) -> None:
    made: set[Path] = set()
    trained = False
    for words in commands(name):
        options = parsed(words)
        if recipe := options.get("recipe"):
            load_recipe(recipe, options.get("overrides") or ())
            trained |= recipe == name and bool(options.get("run"))
        assert reads(words[0], options) <= made, f"{words}: nothing before it makes what it reads"
        made |= places(options, "out", "store", "run")

    assert trained, "no command trains this recipe"


def test_a_header_with_a_wrong_option_would_be_noticed() -> None:
    with pytest.raises(Exception, match="No such option"):
        parsed(["plan", "distill/vit_b_from_vit_l_k400", "--catalog", "videos.parquet", "--store", "store"])
