"""`mvd-offline completion`: scripts for shells, and the words that they ask for."""

from __future__ import annotations

import re
import types
import typing
from collections.abc import Iterator, Sequence
from enum import Enum, StrEnum
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import typer

ASKED: Final = "__complete"
"""`mvd-offline __complete WORD... CURRENT` prints what CURRENT may become: a line each, `value<TAB>help`."""

FILES: Final = ":files"
"""The line that tells the shell to add files and folders itself."""

_BASH = """\
# bash completion for mvd-offline and mvd-shards
_mvd_offline() {
    local line files='' cur="${COMP_WORDS[COMP_CWORD]}"
    [[ $cur == '=' ]] && cur=''
    COMPREPLY=()
    while IFS= read -r line; do
        if [[ $line == ':files' ]]; then files=1; else COMPREPLY+=("${line%%$'\\t'*}"); fi
    done < <("${COMP_WORDS[0]/#\\~/$HOME}" __complete "${COMP_WORDS[@]:1:COMP_CWORD}" 2>/dev/null)
    if [[ $files ]]; then
        [[ ${#COMPREPLY[@]} == 0 ]] && compopt -o filenames 2>/dev/null
        while IFS= read -r line; do COMPREPLY+=("$line"); done < <(compgen -f -- "$cur")
    fi
}
complete -F _mvd_offline mvd-offline mvd-shards
"""

_ZSH = """\
#compdef mvd-offline mvd-shards
# zsh completion for mvd-offline and mvd-shards
_mvd_offline() {
    local line files='' name
    local -a found
    for line in "${(@f)$("${words[1]/#\\~/$HOME}" __complete "${(@)words[2,CURRENT]}" 2>/dev/null)}"; do
        if [[ $line == ':files' ]]; then
            files=1
        elif [[ -n $line ]]; then
            name="${line%%$'\\t'*}"
            found+=("${name//:/\\\\:}${${line#$name}/$'\\t'/:}")
        fi
    done
    (( ${#found} )) && _describe 'mvd-offline' found
    [[ -n $files ]] && _files
}
(( $+functions[compdef] )) || { autoload -Uz compinit && compinit }
compdef _mvd_offline mvd-offline mvd-shards
"""

_FISH = """\
# fish completion for mvd-offline and mvd-shards
function __mvd_offline_complete
    set -l words (commandline -opc)
    set -l current (commandline -ct)
    for line in ($words[1] __complete $words[2..-1] "$current" 2>/dev/null)
        if test "$line" = ':files'
            __fish_complete_path "$current"
        else
            echo $line
        end
    end
end
complete -c mvd-offline -f -a '(__mvd_offline_complete)'
complete -c mvd-shards -f -a '(__mvd_offline_complete)'
"""


class ShellName(StrEnum):
    """The shells that have a script."""

    bash = "bash"
    zsh = "zsh"
    fish = "fish"


_SCRIPTS: Final = {ShellName.bash: _BASH, ShellName.zsh: _ZSH, ShellName.fish: _FISH}


def completion(shell: Annotated[ShellName, typer.Argument(help="Your shell.", show_default=False)]) -> None:
    """Print the script that completes commands, options, recipes, choices and paths in a shell.

    bash, in ~/.bashrc: eval "$(mvd-offline completion bash)"

    zsh, in ~/.zshrc: eval "$(mvd-offline completion zsh)"

    fish, once: mvd-offline completion fish > ~/.config/fish/completions/mvd-offline.fish
    """
    typer.echo(_SCRIPTS[shell], nl=False)


# ---- what a word may become --------------------------------------------------------------------------------------


def print_suggestions(root: Any, words: Sequence[str]) -> None:
    """Print what the last of `words`, which follow the name of the program `root`, may become."""
    for line in dict.fromkeys(suggestions(root, words)):
        typer.echo(line)


def suggestions(root: Any, words: Sequence[str]) -> Iterator[str]:
    """Lines of the protocol for the last word, which may be empty."""
    *before, current = _joined(words or [""])
    command, wanted, places = _where(root, before)
    if wanted is not None:
        yield from _values(wanted, command, current)
    elif re.match(r"--[\w-]+=", current):
        name, _, value = current.partition("=")
        # bash took the word apart and completes what follows its =; other shells complete the whole word.
        prefix = "" if "=" in words[-2:] else f"{name}="
        for line in _values(_option(command, name), command, value):
            yield line if line == FILES else prefix + line
    elif current.startswith("-"):
        yield from _options(command, before, current)
    elif _is_group(command):
        for name in command.commands:
            if name.startswith(current) and not command.commands[name].hidden:
                yield f"{name}\t{_first_line(command.commands[name].help)}"
    else:
        arguments = [param for param in command.params if not _is_option(param)]
        takes_more = [param for param in arguments if param.nargs != 1]
        if places < len(arguments):
            yield from _values(arguments[places], command, current)
        elif takes_more:
            yield from _values(takes_more[-1], command, current)


def _joined(words: Sequence[str]) -> list[str]:
    """bash takes `--codec=float16` apart at the `=`: put it together again."""
    joined: list[str] = []
    for place, word in enumerate(words):
        if word == "=" and joined:
            joined[-1] += "="
        elif place and words[place - 1] == "=":
            joined[-1] += word
        else:
            joined.append(word)
    return joined


def _where(root: Any, before: Sequence[str]) -> tuple[Any, Any | None, int]:
    """The command that the words lead to, the option whose value comes next, and how many arguments there are."""
    command, wanted, left, places = root, None, 0, 0
    for word in before:
        if left:
            left -= 1
            wanted = wanted if left else None
        elif word.startswith("-"):
            option = _option(command, word)
            if option is not None and not option.is_flag and "=" not in word:
                wanted, left = option, option.nargs
        elif _is_group(command) and word in command.commands:
            command, places = _subcommand(command, word), 0
        else:
            places += 1
    return command, wanted, places


def _subcommand(group: Any, name: str) -> Any:
    from mvd_offline.cli.main import COMMANDS, LazyGroup, load_command

    return load_command(name) if isinstance(group, LazyGroup) and name in COMMANDS else group.commands[name]


def _is_group(command: Any) -> bool:
    return hasattr(command, "commands")


def _is_option(param: Any) -> bool:
    return hasattr(param, "is_flag")


def _option(command: Any, name: str) -> Any | None:
    names = ((param, {*param.opts, *param.secondary_opts}) for param in command.params if _is_option(param))
    return next((param for param, known in names if name.partition("=")[0] in known), None)


def _options(command: Any, before: Sequence[str], current: str) -> Iterator[str]:
    """Options that are not given yet, and those that may be given again."""
    given = {word.partition("=")[0] for word in before}
    for param in command.params:
        if not _is_option(param) or param.hidden or (given & {*param.opts} and not param.multiple):
            continue
        for name in (*param.opts, *param.secondary_opts):
            if name.startswith(current):
                yield f"{name}\t{_first_line(param.help)}"
    for name, told in (("--help", "Show this message and exit."), ("--debug", "Show the traceback of an error.")):
        if name.startswith(current):
            yield f"{name}\t{told}"


def _first_line(text: str | None) -> str:
    return " ".join((text or "").split("\n\n")[0].split())


# ---- values ------------------------------------------------------------------------------------------------------


def _values(param: Any, command: Any, current: str) -> Iterator[str]:
    """What an argument or the value of an option may be."""
    if param is None:
        return
    if param.name == "recipe":
        found = [line for line in _recipes(command.name) if line.startswith(current)]
        yield from found
        if not found or not current:
            yield FILES
        return
    kind = _kind_of(param)
    choices = _choices(kind)
    yield from (choice for choice in choices if choice.startswith(current))
    named_path = param.metavar in ("CKPT", "PATH", "NAME=PATH") or param.name in ("source", "video")
    if not choices and (kind is Path or named_path):
        yield FILES


def _recipes(command: str) -> Iterator[str]:
    """Recipes that ship and that the command takes, with what they reproduce. Their texts are read, not parsed."""
    import mvd_offline

    kinds = {"plan": "distill", "distill": "distill", "pretrain": "pretrain", "finetune": "finetune"}
    folder = Path(mvd_offline.__file__).parent / "configs"
    for path in sorted(folder.glob("*/*.yaml")):
        text = path.read_text(encoding="utf-8")
        if command not in kinds or f"\nkind: {kinds[command]}\n" in text:
            yield f"{path.parent.name}/{path.stem}\t{text.partition(chr(10))[0].removeprefix('# ')}"


def _kind_of(param: Any) -> Any:
    """The Python type of one value; of typers that stand on click, click's type."""
    descriptor = getattr(param, "type_descriptor", None)
    if descriptor is None:
        return Path if param.type.name in ("path", "file", "directory") else param.type
    kind = descriptor.annotation
    while typing.get_origin(kind) in (list, tuple, typing.Union, types.UnionType):
        kind = typing.get_args(kind)[0]
    return kind


def _choices(kind: Any) -> list[str]:
    if typing.get_origin(kind) is Literal:
        return [str(value) for value in typing.get_args(kind)]
    if isinstance(kind, type) and issubclass(kind, Enum):
        return [str(member.value) for member in kind]
    return [str(choice) for choice in getattr(kind, "choices", ())]
