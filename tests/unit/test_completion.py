"""Completion: what each shell is given for the word under the cursor, and that it is given at once."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_group

from mvd_offline.cli.completion import FILES, ShellName, suggestions
from mvd_offline.cli.main import COMMANDS, app, load_command, main
from mvd_offline.recipe import load_recipe, shipped_recipes


def values(*words: str) -> list[str]:
    """Suggested values, without their help, for the last word after `mvd-offline`."""
    return [line.partition("\t")[0] for line in suggestions(get_group(app), words)]


def script(shell: ShellName, capsys: pytest.CaptureFixture[str]) -> str:
    assert main(["completion", shell]) == 0
    return capsys.readouterr().out


def in_shell(*command: str) -> str:
    places = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PATH": places}, check=True)
    return done.stdout


def test_commands_subcommands_and_options_come_with_their_help() -> None:
    assert values("") == list(COMMANDS)
    assert values("videos", "s") == ["scan", "synth", "show"]
    (line,) = suggestions(get_group(app), ["distill", "r", "--dry"])
    assert line.split("\t")[0] == "--dry-run"
    assert line.split("\t")[1]


def test_an_option_that_is_given_comes_again_only_if_it_may_be_repeated() -> None:
    given = values("distill", "r", "--store", "a", "--run", "b", "--")
    assert "--store" in given
    assert "--run" not in given
    assert {"--help", "--debug", "--json"} <= set(given)


@pytest.mark.parametrize("command", ["distill", "plan", "pretrain", "finetune"])
def test_a_recipe_argument_takes_the_recipes_of_its_kind(command: str) -> None:
    kind = {"plan": "distill"}.get(command, command)
    fitting = [name for name in shipped_recipes() if load_recipe(name).kind == kind]
    assert [name for name in values(command, "") if name != FILES] == fitting


def test_choices_and_paths_are_told_apart() -> None:
    assert values("convert", "a.pth", "--to", "") == ["mvd", "hf", "timm", "safetensors", "onnx", "pt2"]
    assert values("distill", "r", "--follow", "") == ["wait", "skip"]
    assert values("convert", "") == values("distill", "r", "--store", "") == values("plan", "mine.y") == [FILES]
    assert values("videos", "synth", "x", "--seed", "") == []
    assert values("videos", "synth", "x", "--frames", "4", "8", "--im") == ["--images"]


def test_a_value_after_an_equals_sign_is_completed_whole_or_as_bash_takes_it_apart() -> None:
    assert values("convert", "a.pth", "--to=ti") == ["--to=timm"]
    assert values("convert", "a.pth", "--to", "=", "ti") == ["timm"]


def test_the_shard_tool_completes_its_own_commands() -> None:
    assert [line.split("\t")[0] for line in suggestions(load_command("shards"), ["ver"])] == ["verify"]


def test_every_command_can_be_completed() -> None:
    def walk(command: Any, path: list[str]) -> None:
        if hasattr(command, "commands"):
            for name, child in command.commands.items():
                walk(child, [*path, name])
            return
        assert "--help\tShow this message and exit." in suggestions(command, ["--"]), path
        for param in command.params:
            if hasattr(param, "is_flag") and not param.is_flag:
                found = list(suggestions(command, [param.opts[0], ""]))
                assert all(line == FILES or line.split("\t")[0].strip() for line in found), (path, param.name)

    for name in COMMANDS:
        walk(load_command(name), [name])


def test_bash_completes_commands_recipes_and_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "student.pth").touch()
    (tmp_path / "c.bash").write_text(script(ShellName.bash, capsys), encoding="utf-8")
    asked = [["distill", "distill/vit_h"], ["convert", f"{tmp_path}/stu"], ["convert", "x", "--to", "=", "on"]]
    code = f"source {tmp_path}/c.bash; complete -p mvd-offline mvd-shards\n"
    for words in asked:
        code += f"COMP_WORDS=(mvd-offline {' '.join(words)}); COMP_CWORD={len(words)}; _mvd_offline\n"
        code += 'printf "%s\\n" "${COMPREPLY[@]}"\n'
    found = in_shell("bash", "--norc", "-c", code).splitlines()
    assert found[:2] == ["complete -F _mvd_offline mvd-offline", "complete -F _mvd_offline mvd-shards"]
    assert found[2:] == ["distill/vit_h_from_vit_h_k400_800e", str(tmp_path / "student.pth"), "onnx"]


@pytest.mark.skipif(shutil.which("fish") is None, reason="fish is not installed")
def test_fish_completes_recipes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "c.fish").write_text(script(ShellName.fish, capsys), encoding="utf-8")
    found = in_shell("fish", "-c", f'source {tmp_path}/c.fish; complete -C "mvd-offline distill distill/vit_h"')
    assert found.startswith("distill/vit_h_from_vit_h_k400_800e\t")


@pytest.mark.skipif(shutil.which("zsh") is None, reason="zsh is not installed")
def test_zsh_takes_the_script(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "c.zsh").write_text(script(ShellName.zsh, capsys), encoding="utf-8")
    code = f"autoload -Uz compinit; compinit -u -D; source {tmp_path}/c.zsh; print $_comps[mvd-offline]"
    assert in_shell("zsh", "-f", "-c", code).strip() == "_mvd_offline"


def test_an_answer_takes_no_half_second_and_loads_nothing_heavy() -> None:
    code = (
        "import sys\nfrom mvd_offline.cli.main import main\nmain(['__complete', 'distill', 'distill/'])\n"
        "print(*sys.modules, file=sys.stderr, sep=chr(10))"
    )
    seconds = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert "distill/vit_b_from_vit_l_k400\t" in done.stdout
    assert not set(done.stderr.split()) & {"torch", "numpy", "pydantic", "yaml", "rich", "pyarrow"}
    assert min(seconds) < 0.5
