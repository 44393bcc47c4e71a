"""What the pages say is there: commands and their options, recipes, links, make's targets, every error."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest
from pages import PAGES, ROOT, Block, blocks, code, commands, lines_of, without_blocks

from mvd_offline import errors
from mvd_offline.cli.main import COMMANDS, ParserError, load_command
from mvd_offline.errors import MvdError
from mvd_offline.recipe import load_recipe, shipped_recipes
from mvd_offline.shards import errors as store_errors
from mvd_offline.shards.schema import STATUSES

README = ROOT / "README.md"
GETTING_STARTED = ROOT / "docs" / "getting-started.md"
SHELL = [block for page in PAGES for block in code(page) if block.language == "bash"]

each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


@each_page
def test_every_block_is_run_or_says_why_not(page: Path) -> None:
    fences = re.findall(r"^```\w", page.read_text(encoding="utf-8"), flags=re.MULTILINE)

    assert len(fences) == len(blocks(page)), "a block that the tests do not see"
    for block in code(page):
        assert not block.reason or len(block.reason.split()) >= 3, f"{block.place}: give the reason in words"


@pytest.mark.parametrize("block", SHELL, ids=lambda block: block.place)
def test_the_shell_understands_every_script(block: Block) -> None:
    checked = subprocess.run(["bash", "-n"], input=block.text, text=True, capture_output=True, check=False)

    assert not checked.returncode, f"{block.place}: {checked.stderr}"


@pytest.mark.parametrize("block", SHELL, ids=lambda block: block.place)
def test_every_command_of_a_script_is_understood(block: Block) -> None:
    for words in commands(block.text):
        try:
            understood(words, block.place)
        except (ParserError, MvdError) as error:
            pytest.fail(f"{block.place}: {' '.join(words)}: {error}")


def understood(words: list[str], place: str) -> None:
    """The command line takes the command, its options and their values; the recipe and the keys that it sets exist."""
    command, rest = find_command(words, place)
    given = command.make_context(words[0], list(rest)).params
    recipe = given.get("recipe")
    if isinstance(recipe, str) and "$" not in recipe and not recipe.endswith(".yaml"):
        load_recipe(recipe, [item for item in given.get("overrides") or () if "$" not in item])


def find_command(words: list[str], place: str) -> tuple[Any, list[str]]:
    assert words[0] in COMMANDS, f"{place}: no command {words[0]}"
    command, rest = load_command(words[0]), words[1:]
    while hasattr(command, "commands"):
        assert rest[:1], f"{place}: {words[0]} alone does nothing"
        assert rest[0] in command.commands, f"{place}: {words[0]} has no {rest[0]}"
        command, rest = command.commands[rest[0]], rest[1:]
    return command, rest


# ---- prose -----------------------------------------------------------------------------------------------------------


def in_code(page: Path) -> Iterator[str]:
    """What a page's prose has between backquotes, over line ends, too."""
    yield from (" ".join(found.split()) for found in re.findall(r"`([^`]+)`", without_blocks(page)))


@each_page
def test_the_commands_in_the_prose_exist_and_have_these_options(page: Path) -> None:
    for text in in_code(page):
        match = re.match(r"(?:accelerate launch .*-m mvd_offline|mvd-offline|(?=mvd-shards)) ?([a-z][a-z -]*.*)", text)
        if not match or "COMMAND" in text:
            continue
        words = match[1].split()
        words = ["shards", *words[1:]] if words[0] == "mvd-shards" else words
        assert words[0] in COMMANDS, f"{page.name}: {text}"
        command, rest = load_command(words[0]), words[1:]
        while hasattr(command, "commands") and rest and re.fullmatch(r"[a-z][a-z-]*", rest[0]):
            assert rest[0] in command.commands, f"{page.name}: {text}"
            command, rest = command.commands[rest[0]], rest[1:]
        known = {option for parameter in command.params for option in parameter.opts} | {"--help"}
        for option in re.findall(r"(?<=\s)--[a-z-]+", text):
            assert option in known or hasattr(command, "commands"), f"{page.name}: {text} has no {option}"


@each_page
def test_the_keys_that_the_prose_sets_are_keys_of_a_recipe(page: Path) -> None:
    examples = ("distill/vit_s_from_vit_b_k400", "finetune/vit_s_k400", "pretrain/videomae_vit_s_k400")
    for text in in_code(page):
        for change in re.findall(r"--set ([a-z_.]+=[\w.:/-]+)", text):
            value = change.partition("=")[2]
            if not value.isupper() and change != "a.b=c":  # what the reader has to choose
                assert any(is_key(name, change) for name in examples), f"{page.name}: {change}"


def is_key(recipe: str, change: str) -> bool:
    try:
        load_recipe(recipe, [change])
    except MvdError:
        return False
    return True


@each_page
def test_the_recipes_that_it_names_ship(page: Path) -> None:
    text = page.read_text(encoding="utf-8")

    for name in re.findall(r"(?<![\w/-])((?:distill|pretrain|finetune|smoke)/[a-z0-9_]+\*?)", text):
        assert any(fnmatch(shipped, name) for shipped in shipped_recipes()), name


@each_page
def test_links_within_the_repository_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", without_blocks(page)):
        if not re.match(r"[a-z]+:|#", target):
            file = page.parent / target.partition("#")[0]
            assert file.exists(), f"{page.name}: {target}"


@each_page
def test_the_files_that_it_names_are_there(page: Path) -> None:
    for text in in_code(page):
        if re.fullmatch(r"(mvd_offline|shards|cli|configs|tests|docs|models|recipe)/[\w/-]+(\.\w+|/)?", text):
            assert (ROOT / text).exists() or (ROOT / "mvd_offline" / text).exists(), f"{page.name}: {text}"


def test_the_names_of_code_that_contributors_are_told_of_are_there() -> None:
    folders = ("mvd_offline", "shards", "cli", "tests/unit")
    files = [file for folder in folders for file in (ROOT / folder).rglob("*.py")]
    source = "\n".join(file.read_text(encoding="utf-8") for file in files)
    page = ROOT / "docs" / "contributing.md"
    names = {text for text in in_code(page) if re.fullmatch(r"_?[A-Za-z]\w+", text) and not text.islower()}
    names |= {text for text in in_code(page) if re.fullmatch(r"_?[a-z]+_[a-z_]+(\(\))?", text)}

    assert len(names) > 10
    assert not [name for name in names if name.rstrip("()") not in source]


@each_page
def test_no_page_knows_where_it_was_written(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    absolute = set(re.findall(r"(?<![\w.$})/:*<-])/([a-z]+)/", text))

    # A reader's own disks, and what every Linux has.
    assert absolute <= {"data", "scratch", "dev", "bin"}
    assert "localhost" not in text


# ---- README ----------------------------------------------------------------------------------------------------------


def test_the_readmes_commands_are_those_of_getting_started() -> None:
    ours, theirs = (
        [line for block in code(page) for line in lines_of(block.text)] for page in (README, GETTING_STARTED)
    )

    assert len([line for line in ours if "mvd" in line]) >= 10
    assert not [line for line in ours if line and line not in theirs]


def test_the_make_targets_exist() -> None:
    targets = re.findall(r"^make (\w+)$", README.read_text(encoding="utf-8"), flags=re.MULTILINE)

    assert targets == ["demo", "test"]
    for target in [*targets, "docs"]:
        assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE)


def test_the_demos_output_is_shown() -> None:
    shown = [block for block in blocks(GETTING_STARTED) if "from the distilled student" in block.text]

    assert len(shown) == 1
    assert "% top-1" in shown[0].text


# ---- what must be complete -------------------------------------------------------------------------------------------


def all_errors() -> set[type[MvdError]]:
    found = {value for module in (errors, store_errors) for value in vars(module).values() if isinstance(value, type)}
    return {value for value in found if issubclass(value, MvdError)}


def test_troubleshooting_explains_every_error_every_status_of_a_row_and_of_a_process() -> None:
    page = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    explained = set(re.findall(r"^\| `(\w+)`", page, flags=re.MULTILINE))

    assert len(all_errors()) > 15
    assert {error.__name__ for error in all_errors()} <= explained
    assert set(STATUSES) <= explained
    assert {"0", "1", "2", "75", "130"} <= explained


def test_the_papers_page_names_every_recipe_that_reproduces_a_number() -> None:
    page = (ROOT / "docs" / "paper.md").read_text(encoding="utf-8")
    names = [name for name in shipped_recipes() if re.match(r"(distill|finetune|pretrain)/", name)]

    assert not [name for name in names if name not in page]
