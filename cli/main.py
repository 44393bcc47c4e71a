"""The entry points `mvd-offline` and `mvd-shards`: which command lives where, and how an error leaves the process.

A command's module is imported when the command runs, so `--help` loads none of them; nor does it load rich, whose
panels would take half of the time that `--help` may take.
"""

from __future__ import annotations

import importlib
import os
import re
import sys
from collections.abc import Sequence
from typing import Annotated, Any, NamedTuple

import typer
from typer.core import TyperCommand, TyperGroup
from typer.main import get_group

from mvd_offline import __version__
from mvd_offline.errors import TrainingStopped, UsageError, nearest

INTERRUPTED = 130
STOPPED = 75
"""EX_TEMPFAIL: a training was asked by a signal to stop, and saved; run the same command again to go on."""

# What the command-line parser raises. Its library differs between releases of typer, but not the family of this class.
ParserError: type[Exception] = typer.BadParameter.__mro__[2]


class Place(NamedTuple):
    """Where a command is: `module` defines `app` (a group) or a function named after the command."""

    module: str
    help: str
    group: bool = False


COMMANDS: dict[str, Place] = {
    "demo": Place("demo", "The whole pipeline in miniature on generated, labelled videos."),
    "videos": Place("videos", "Catalogs of videos: scan, synth, show, cache, verify.", group=True),
    "plan": Place("plan", "Fix the views of a store, and say what it will cost."),
    "extract": Place("extract", "Run the frozen teachers over a store's views; resumable."),
    "distill": Place("distill", "Train a student on the masked features of its teachers."),
    "pretrain": Place("pretrain", "Train a teacher from scratch: MAE or VideoMAE."),
    "finetune": Place("finetune", "Train a classifier from a pretrained encoder."),
    "evaluate": Place("evaluate", "Test a fine-tuned run, or probe a pretrained encoder."),
    "analyze": Place("analyze", "See what teachers and students learn, and what runs did.", group=True),
    "convert": Place("convert", "A checkpoint for transformers, timm, ONNX, torch.export."),
    "shards": Place("shards", "Look into a store, and check it; also installed as mvd-shards.", group=True),
    "recipes": Place("recipes", "The recipes that ship.", group=True),
    "bench": Place("bench", "Measurements.", group=True),
    "doctor": Place("doctor", "Say whether this machine is ready, and what to do if not."),
    "completion": Place("completion", "Print the script that completes commands in a shell."),
}


class LazyGroup(TyperGroup):
    """A group whose commands are placeholders, with their one line of help, until one of them is called."""

    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes)
        self.commands.update({name: TyperCommand(name, help=place.help) for name, place in COMMANDS.items()})

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if args and args[0] in COMMANDS:
            self.commands[args[0]] = load_command(args[0])
        return super().resolve_command(ctx, args)


def load_command(name: str) -> Any:
    """Import a command's module and build the command."""
    place = COMMANDS[name]
    module = importlib.import_module(f"mvd_offline.cli.{place.module}")
    if place.group:
        module.app.rich_markup_mode = None
        group = get_group(module.app)
        group.name = name
        return group
    single = typer.Typer(add_completion=False, rich_markup_mode=None)
    single.command(name)(getattr(module, name))
    return typer.main.get_command(single)


app = typer.Typer(
    cls=LazyGroup,
    add_completion=False,
    rich_markup_mode=None,
    help="Masked video distillation with precomputed targets: run the frozen teachers once, train many students.",
    epilog="Begin with `mvd-offline demo`. With your own videos: videos scan, plan, extract, distill, finetune, "
    "evaluate; `mvd-offline COMMAND --help` tells what each takes. Exit status: 0 done, 1 failed, 2 wrong usage, "
    "75 stopped by a signal and saved.",
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"mvd-offline {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error; also MVD_DEBUG=1.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Options before the command. `run` takes --debug at any place, so it is only declared here."""


def main(arguments: Sequence[str] | None = None) -> int:
    """The `mvd-offline` command.

    Returns:
        The exit status: 0 done, 1 failed, 2 wrong usage, 75 a signal stopped a training, which saved (run the same
        command again to go on), 130 interrupted.
    """
    return run(get_group(app), "mvd-offline", arguments)


def main_shards(arguments: Sequence[str] | None = None) -> int:
    """The `mvd-shards` command: `mvd-offline shards` under its own name."""
    return run(load_command("shards"), "mvd-shards", arguments)


def run(command: Any, program: str, arguments: Sequence[str] | None = None) -> int:
    """Run a command; an error becomes one paragraph on standard error and an exit status.

    Args:
        command: a built command or group.
        program: its name in help and usage.
        arguments: what follows the program's name; the process's own when None.

    Raises:
        Exception: whatever the command raised, when --debug or MVD_DEBUG asks for tracebacks.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given[:1] == ["__complete"]:
        from mvd_offline.cli.completion import print_suggestions

        print_suggestions(command, given[1:])
        return 0
    words = [word for word in given if word != "--debug"]
    debug = words != given or os.environ.get("MVD_DEBUG", "0") not in ("", "0")
    try:
        with command.make_context(program, words or ["--help"]) as context:
            status = command.invoke(context)
        sys.stdout.flush()
    except typer.Exit as leaving:
        return leaving.exit_code
    except ParserError as error:
        return _report_usage(error)
    except (KeyboardInterrupt, typer.Abort):
        _say("interrupted; run the same command again to go on")
        return INTERRUPTED
    except BrokenPipeError:
        # The reader of our output left, as `head` does. Python would complain once more when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except TrainingStopped as stopped:
        if not int(os.environ.get("RANK", "0")):
            _say(str(stopped))
        return STOPPED
    except Exception as error:
        if debug:
            raise
        from mvd_offline.cli.problems import describe

        _say(f"error: {describe(error)}")
        return 2 if isinstance(error, UsageError) else 1
    return status if isinstance(status, int) else 0


def _report_usage(error: Any) -> int:
    message = error.format_message()
    context = getattr(error, "ctx", None)
    if type(error).__name__ == "NoArgsIsHelpError":
        if message:
            typer.echo(message, err=True)
    elif context is not None:
        said = f"error: {_with_nearest(message).rstrip('.')}. `{context.command_path} --help` shows what is allowed."
        _say(said.replace("?.", "?"))
    else:
        _say(f"error: {message}")
    return int(error.exit_code)


def _with_nearest(message: str) -> str:
    """A refused choice names all that are allowed; add the nearest of them."""
    message = message.replace("Value error, ", "")
    refused = re.search(r"'([^']*)' is not one of (.*)", message)
    if refused is None:
        return message
    allowed = re.findall(r"'([^']*)'", refused[2])
    return f"{message.rstrip('.')}.{nearest(refused[1], allowed)}"


def _say(message: str) -> None:
    """One paragraph on standard error: wrapped to the terminal's width, or a single line where there is none.

    A list of fields in it, `  field: ...`, keeps its lines.
    """
    parts = re.split(r"^(  [\w.]+: .*)$", message, flags=re.MULTILINE)
    text = "\n".join(part if place % 2 else " ".join(part.split()) for place, part in enumerate(parts) if part.strip())
    if sys.stderr.isatty():
        from mvd_offline.cli.common import stderr_console

        stderr_console().print(text, markup=False)
    else:
        typer.echo(text, err=True)
