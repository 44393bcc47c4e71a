"""`bench all`: every benchmark in a process of its own, one file of results, a page, pictures; and on from there."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import typer
from PIL import Image

from mvd_offline.bench.suite.lines import Line, lines_of
from mvd_offline.bench.suite.pages import markdown
from mvd_offline.bench.suite.parts import ON_CPU, PARTS, Material
from mvd_offline.cli.bench import app
from mvd_offline.cli.main import main


def test_results_are_written_and_gone_on_from(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    command = ["bench", "all", "--out", str(out), "--quick", "--parts", "clips"]
    assert main(command) == 0
    page = capsys.readouterr().out

    result = json.loads((out / "results.json").read_text(encoding="ascii"))
    assert result["recipe"] == "smoke_distill_vit_s_from_vit_b_k400"
    assert {"torch", "numpy", "zarr"} <= result["versions"].keys()
    assert result["machine"]["cpus"] >= 1
    assert (result["threads"], list(result["parts"]), result["failed"]) == (1, ["clips"], {})
    clips = result["parts"]["clips"]
    assert (clips["seconds"] > 0, clips["report"]["views"], clips["report"]["codec"]) == (True, 32, "jpeg-95-444")
    assert (out / "results.md").read_text(encoding="utf-8") in page
    assert f"| baked is faster | {lines_of('clips', clips['report'])[2]} |" in page
    assert "`mvd-offline bench clips DIR/store --rounds 1 --json`" in page
    assert "![Loading a clip from its video and from the store](clips.png)" in page
    with Image.open(out / "clips.png") as picture:
        assert picture.width > 500

    # What is there is not measured again; another recipe is not mixed with it.
    assert main([*command, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["parts"]["clips"] == clips
    assert main([*command, "--set", "view.seed=1"]) == 2
    assert "measurements of another recipe" in capsys.readouterr().err
    assert main([*command[:-1], "clip"]) == 2
    assert "there is no benchmark clip; choose of step, " in capsys.readouterr().err


def test_a_benchmark_that_failed_is_on_the_page() -> None:
    page = markdown("name", ["a note"], {}, {"codecs": "what it said"}, {}, {"device": "here"})
    assert "## What each codec makes of features\n\nFailed:\n\n```text\nwhat it said\n```" in page
    assert "- a note" in page


def test_every_part_is_a_command_with_these_options(tmp_path: Path) -> None:
    names = {"recipe": tmp_path / "r.yaml", "catalog": tmp_path / "c", "store": tmp_path / "s", "folder": tmp_path}
    material = Material(**names, sizes=ON_CPU, threads=1)
    commands = typer.main.get_command(app)
    assert isinstance(commands, typer.core.TyperGroup)
    for part in PARTS:
        _, name, *arguments = material.command(part)
        commands.commands[name].make_context(name, arguments)  # which refuses options that there are none


@pytest.mark.parametrize(
    ("line", "text"),
    [
        (Line("", 1.23456, 1.1, 2.0, "x"), "1.23 (1.1 to 2) x"),
        (Line("", 12345.6, 12345.6, 12345.6, "MB"), "12,346 MB"),
        (Line("", 0.000123, 0.0001, 0.0002, ""), "0.000123 (0.0001 to 0.0002)"),
    ],
)
def test_figures_have_three_digits(line: Line, text: str) -> None:
    assert str(line) == text
