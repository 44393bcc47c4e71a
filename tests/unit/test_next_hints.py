"""What a command says to run next is a command line of ours, and typing errors are answered with what was meant."""

from __future__ import annotations

import ast
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from mvd_offline.cli import main as cli
from mvd_offline.cli.main import load_command, main


def text_of(node: ast.AST) -> str:
    """A string of the source, with `x` for what is filled in."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(part.value if isinstance(part, ast.Constant) else "x" for part in node.values)
    return ""


def hints() -> Iterator[str]:
    """Every `next: mvd-offline ...`, and every command given to `say_next` and `report_training`."""
    for path in sorted(Path(cli.__file__).parent.glob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        pieces = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
        for node in ast.walk(tree):
            whole = isinstance(node, ast.JoinedStr | ast.Constant) and id(node) not in pieces
            if whole and text_of(node).startswith("next: mvd-offline "):
                yield text_of(node).removeprefix("next: ")
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("say_next", "report_training"):
                yield from (text_of(given) for given in node.args if text_of(given).startswith("mvd-offline "))


def test_every_hint_is_a_command_that_parses() -> None:
    found = sorted({hint for hint in hints() if len(hint.split()) > 1})
    assert len(found) >= 11
    for hint in found:
        program, name, *words = shlex.split(hint)
        command = load_command(name)
        while hasattr(command, "commands"):
            sub, *words = words
            command = command.commands[sub]
        with command.make_context(program, words):
            pass


def test_a_finished_step_names_the_next_with_its_paths(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    videos, catalog = tmp_path / "my videos", tmp_path / "my catalog.parquet"
    sizes = ["--videos-per-class", "1", "--test-videos-per-class", "0", "--classes", "2", "--frames", "4", "6"]
    assert main(["videos", "synth", str(videos), *sizes, "--workers", "1"]) == 0
    assert f"next: mvd-offline videos scan '{videos / 'train'}'" in capsys.readouterr().out
    scan = ["videos", "scan", str(videos / "train"), "--out", str(catalog), "--workers", "1"]
    assert main(scan) == 0
    assert f"next: mvd-offline plan RECIPE --videos '{catalog}'" in capsys.readouterr().out
    assert main([*scan, "--json"]) == 0
    assert "next:" not in capsys.readouterr().out


DRY = ["distill", "distill/vit_s_from_vit_b_k400", "--dry-run", "--set"]


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        (["distil"], "Did you mean 'distill'?"),
        (["shards", "verfy"], "Did you mean 'verify'?"),
        (["distill", "r", "--sotre", "x"], "--store"),
        (["convert", "a", "--to", "onxx", "--out", "b"], "Did you mean onnx?"),
        (["videos", "cache", "x", "--out", "y", "--format", "h256"], "Did you mean h264?"),
        (["completion", "bsh"], "Did you mean bash?"),
        (["plan", "distill/vit_s_from_vit_b_k40", "--videos", "a", "--store", "b"], "distill/vit_s_from_vit_b_k400"),
        ([*DRY, "loss.weights.imgae=1"], "Did you mean image?"),
        ([*DRY, "teachers.vdieo.weights=a"], "Did you mean video?"),
        ([*DRY, "store.codec=flaot16"], "Did you mean float16?"),
        ([*DRY, "store.container=zar"], "Did you mean zarr?"),
        (["extract", "store", "--teacher", "vidoe=a.pth"], "Did you mean video?"),
        (["bench", "all", "--parts", "stpe"], "Did you mean step?"),
        (
            ["convert", "timm:vit_base_patch16_224.mea", "--to", "timm", "--out", "x"],
            "near it: vit_base_patch16_224.mae",
        ),
    ],
)
def test_a_typing_error_is_answered_with_what_was_meant(
    words: list[str], meant: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(words) in (1, 2)
    said = capsys.readouterr().err
    assert meant in said
    assert len(said.splitlines()) == 1
