"""The command line's frame: names, help, exit statuses, and one paragraph for each error."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.main import get_group

from mvd_offline import __version__
from mvd_offline.cli import common
from mvd_offline.cli.main import COMMANDS, load_command, main, run
from mvd_offline.errors import MvdError, RecipeError, UsageError, VideoError
from mvd_offline.progress import rate_in_words

DESIGNED = (
    "demo", "videos", "plan", "extract", "distill", "pretrain", "finetune", "evaluate",
    "analyze", "convert", "shards", "recipes", "bench", "doctor", "completion",
)  # fmt: skip


@pytest.fixture(autouse=True)
def no_debug(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MVD_DEBUG", raising=False)


def raising(error: BaseException) -> Any:
    """A program of one command that raises `error`."""
    app = typer.Typer(add_completion=False)

    @app.command()
    def fail() -> None:
        raise error

    @app.command()
    def other() -> None:
        """Only here so that the program is a group."""

    return get_group(app)


# ---- names and help ----------------------------------------------------------------------------------------------


def test_the_commands_are_those_of_the_design_in_its_order(capsys: pytest.CaptureFixture[str]) -> None:
    assert tuple(COMMANDS) == DESIGNED

    assert main(["--help"]) == 0
    shown = capsys.readouterr().out
    commands, _, next_steps = shown[shown.index("Commands:") :].partition("\n\n")
    assert tuple(line.split()[0] for line in commands.splitlines()[1:]) == DESIGNED
    assert "..." not in commands, "a command's line of help is cut"
    assert "Begin with `mvd-offline demo`" in next_steps


@pytest.mark.parametrize("name", DESIGNED)
def test_every_command_is_there_and_explains_itself(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([name, "--help"]) == 0
    shown = capsys.readouterr().out

    assert f"Usage: mvd-offline {name}" in shown
    assert len(shown.splitlines()) > 4
    if COMMANDS[name].group:
        assert "Commands:" in shown


def test_mvd_shards_is_the_shards_command_under_its_own_name() -> None:
    code = "from mvd_offline.cli.main import main_shards; raise SystemExit(main_shards(['--help']))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert "Usage: mvd-shards" in done.stdout
    assert list(load_command("shards").commands)
    assert all(name in done.stdout for name in load_command("shards").commands)


def test_no_command_shows_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    assert "Usage: mvd-offline" in capsys.readouterr().out


def test_a_group_without_a_command_is_wrong_usage_and_shows_its_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipes"]) == 2
    captured = capsys.readouterr()
    assert "Usage: mvd-offline recipes" in captured.out + captured.err


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"mvd-offline {__version__}\n"


def test_the_module_runs_as_a_program() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "mvd_offline", "--version"], capture_output=True, text=True, check=True
    )

    assert done.stdout.strip() == f"mvd-offline {__version__}"


# ---- errors ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["distil"], "error: No such command 'distil'. Did you mean 'distill'?"),
        (["recipes", "lst"], "error: No such command 'lst'. Did you mean 'list'?"),
        (["recipes", "show"], "error: Missing argument 'RECIPE'. `mvd-offline recipes show --help`"),
        (["recipes", "list", "--jsn"], "error: No such option"),
        (["recipes", "show", "nothing"], "error: nothing: no such recipe file"),
        (["recipes", "show", "smoke/finetune_vit_s_k400", "--set", "optim.epoch=1"], "did you mean epochs?"),
    ],
)
def test_wrong_usage_is_one_line_and_status_2(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    captured = capsys.readouterr()

    assert captured.out == ""
    assert message in captured.err
    assert captured.err.count("\n") == 1


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (MvdError("the store\nis gone"), 1, "error: the store is gone\n"),
        (UsageError("no such teacher"), 2, "error: no such teacher\n"),
        (RecipeError("optim.epoch is no known key"), 2, "error: optim.epoch is no known key\n"),
        (
            VideoError("a.mp4", "no key frame", frame=3, decoder="decord 0.6.0"),
            1,
            "error: a.mp4, frame 3: no key frame",
        ),
        (FileNotFoundError(2, "No such file or directory", "x.parquet"), 1, "error: x.parquet: No such file"),
        (OSError(28, "No space left on device"), 1, "error: the disk is full. Make room on that disk, then run"),
        (OSError(28, "No space left on device", "/x/y"), 1, "error: /x/y: the disk is full ("),
        (OSError(122, "Disk quota exceeded", "/x/y"), 1, "error: /x/y: the disk quota is used up. Remove files"),
        (OSError(30, "Read-only file system", "/x/y"), 1, "error: /x/y: this cannot be written, its file system is"),
        (PermissionError(13, "Permission denied", "/x"), 1, "error: /x: permission denied to user "),
        (OSError(5, "Input/output error", b"/x"), 1, "error: /x: the disk failed (input/output error). Look at"),
        (OSError(40, "Too many levels of symbolic links", "/x"), 1, "error: /x: Too many levels of symbolic links\n"),
        (TypeError("oops [b]"), 1, "error: unexpected TypeError: oops [b]; this is a bug: run again with --debug\n"),
        (KeyboardInterrupt(), 130, "interrupted; run the same command again to go on\n"),
        (BrokenPipeError(32, "Broken pipe"), 1, ""),
        (typer.Exit(3), 3, ""),
    ],
)
def test_an_error_leaves_as_one_paragraph_and_its_status(
    error: BaseException, status: int, message: str, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "dup2", lambda source, target: target)  # a closed pipe is not wanted in this process
    assert run(raising(error), "program", ["fail"]) == status
    shown = capfd.readouterr().err

    assert shown.startswith(message)
    assert "Traceback" not in shown
    assert shown.count("\n") == (1 if message else 0)


def test_a_list_of_fields_in_an_error_keeps_its_lines(capfd: pytest.CaptureFixture[str]) -> None:
    error = MvdError(
        "s was not made\nfor this:\n  view.stride: recipe has 4, store has 2\n  rows: 1\nUse  it,\n or not."
    )
    assert run(raising(error), "program", ["fail"]) == 1
    lines = [
        "error: s was not made for this:",
        "  view.stride: recipe has 4, store has 2",
        "  rows: 1",
        "Use it, or not.",
    ]
    assert capfd.readouterr().err.splitlines() == lines


def test_debug_shows_the_traceback_wherever_it_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(MvdError, match="gone"):
        run(raising(MvdError("gone")), "program", ["fail", "--debug"])

    monkeypatch.setenv("MVD_DEBUG", "1")
    with pytest.raises(MvdError, match="gone"):
        run(raising(MvdError("gone")), "program", ["fail"])


def test_debug_0_is_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MVD_DEBUG", "0")

    assert run(raising(MvdError("gone")), "program", ["fail"]) == 1


def test_a_reader_that_leaves_early_is_no_error() -> None:
    shell = f"{sys.executable} -m mvd_offline recipes list | head -n 1; exit ${{PIPESTATUS[1]}}"
    done = subprocess.run(["bash", "-c", shell], capture_output=True, text=True, check=True)

    assert done.stdout.startswith("name")
    assert done.stderr == ""


# ---- recipes -----------------------------------------------------------------------------------------------------


def test_recipes_list_shows_name_kind_and_row(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipes", "list"]) == 0
    rows = {line.split()[0]: line.split(maxsplit=2)[1:] for line in capsys.readouterr().out.splitlines()}

    assert rows["distill/vit_s_from_vit_b_k400"] == [
        "distill",
        "ViT-S student, ViT-B teachers, 400 epochs on Kinetics-400 (MVD, main results)",
    ]
    assert rows["smoke/pretrain_mae_vit_b"][0] == "pretrain"


def test_recipes_list_as_json_agrees_with_the_files(capsys: pytest.CaptureFixture[str]) -> None:
    from mvd_offline.recipe import load_recipe, shipped_recipes

    assert main(["recipes", "list", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)

    assert [row["name"] for row in rows] == list(shipped_recipes())
    assert all(load_recipe(row["name"]).kind == row["kind"] for row in rows)


def test_recipes_show_prints_the_file_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    from mvd_offline.recipe import shipped_recipes

    name = "finetune/vit_b_ssv2"
    assert main(["recipes", "show", name]) == 0
    assert capsys.readouterr().out == shipped_recipes()[name].read_text(encoding="utf-8")


def test_recipes_show_resolved_prints_a_recipe_that_loads_with_its_overrides(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    from mvd_offline.recipe import load_finetune

    name = "finetune/vit_b_ssv2"
    assert main(["recipes", "show", name, "--resolved", "--set", "optim.epochs=3"]) == 0
    (tmp_path / "mine.yaml").write_text(capsys.readouterr().out)

    assert load_finetune(tmp_path / "mine.yaml") == load_finetune(name, ["optim.epochs=3"])
    assert "lr_reference_batch" in (tmp_path / "mine.yaml").read_text()

    assert main(["recipes", "show", name, "--resolved", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["optim"]["epochs"] == 30


# ---- what commands share -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"), (999, "999 B"), (1000, "1.00 kB"), (2_408_448, "2.41 MB"), (15_400_000, "15.4 MB"),
        (999_600_000, "1.00 GB"), (1.54e12, "1.54 TB"), (3e15, "3.00 PB"), (-5000, "-5.00 kB"),
    ],
)  # fmt: skip
def test_sizes_are_decimal_with_three_digits(count: float, text: str) -> None:
    assert common.human_bytes(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0421, "42.1 ms"), (5.04, "5.0 s"), (59.99, "1 min 00 s"), (61, "1 min 01 s"), (3599.7, "1 h 00 min"),
        (7384, "2 h 03 min"), (200_000, "2 d 08 h"),
    ],
)  # fmt: skip
def test_durations_use_the_unit_that_fits(seconds: float, text: str) -> None:
    assert common.human_duration(seconds) == text


def test_json_refuses_what_it_cannot_hold(capsys: pytest.CaptureFixture[str]) -> None:
    common.print_json({"path": Path("a/b")})
    assert json.loads(capsys.readouterr().out) == {"path": "a/b"}

    with pytest.raises(ValueError, match="not JSON compliant"):
        common.print_json({"loss": float("nan")})


@pytest.mark.parametrize(
    ("rate", "words"),
    [(0.04194, "0.0419 videos/s"), (3.0, "3 videos/s"), (12.34, "12.3 videos/s"), (999.6, "1,000 videos/s"),
     (12345.6, "12,346 videos/s")],
)  # fmt: skip
def test_a_rate_is_neither_zero_nor_a_power_of_ten(rate: float, words: str) -> None:
    assert rate_in_words(rate, "videos") == words
