"""Pages that mkdocs makes from what they describe: the command line, the recipes, the format.

mkdocs calls `on_page_markdown` while it builds; nothing of this is part of the package. The pages' files in this
folder are for readers of the repository.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import Files
from mkdocs.structure.pages import Page

from mvd_offline.cli.main import COMMANDS, load_command
from mvd_offline.recipe import recipe_header, shipped_recipes

ROOT = Path(__file__).parents[1]


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Fill the pages whose files only say where to look instead."""
    made = {"cli.md": command_line, "recipes.md": recipes, "keys.md": recipe_keys, "format.md": the_format}
    make = made.get(page.file.src_uri)
    return markdown if make is None else make()


def the_format() -> str:
    """shards/FORMAT.md, as it is."""
    return (ROOT / "shards" / "FORMAT.md").read_text(encoding="utf-8")


# ---- the command line ------------------------------------------------------------------------------------------------


def command_line() -> str:
    """What `--help` says of every command, with a table of its options."""
    parts = [
        "# The command line",
        "Made from the program's own help: `mvd-offline COMMAND --help`. Also `python -m mvd_offline`, and "
        "`accelerate launch -m mvd_offline` for several processes. `--debug` anywhere shows the traceback of an error.",
        "Exit status: 0 done, 1 failed or a check found something, 2 wrong usage, 75 a signal stopped a training, "
        "which saved, 130 interrupted.",
        "| command | |\n|---|---|\n"
        + "\n".join(f"| [`{name}`](#{name}) | {place.help} |" for name, place in COMMANDS.items()),
    ]
    for name in COMMANDS:
        for path, command in leaves(name, load_command(name)):
            level = "##" if " " not in path else "###"
            parts += [f"{level} {path}", *describe(path, command)]
    return "\n\n".join(parts) + "\n"


def leaves(path: str, command: Any) -> Iterator[tuple[str, Any]]:
    """A command and, of a group, all commands below it."""
    yield path, command
    for name in getattr(command, "commands", {}):
        yield from leaves(f"{path} {name}", command.commands[name])


def describe(path: str, command: Any) -> Iterator[str]:
    context = command.make_context(f"mvd-offline {path}", [], resilient_parsing=True)
    yield "\n\n".join(escaped(" ".join(part.split())) for part in (command.help or "").split("\n\n"))
    if hasattr(command, "commands"):
        return
    yield "```text\n" + f"mvd-offline {path} " + " ".join(command.collect_usage_pieces(context)) + "\n```"
    shown = [record for parameter in command.params if (record := record_of(parameter, context))]
    yield "| | |\n|---|---|\n" + "\n".join(f"| `{name}` | {text} |" for name, text in shown)


def record_of(parameter: Any, context: Any) -> tuple[str, str] | None:
    """How an argument or option is written, and what it means."""
    record = parameter.get_help_record(context)
    if record is None or "--help" in parameter.opts:
        return None
    name, text = (" ".join(part.split()) for part in record)
    return name.replace("|", "\\|"), escaped(text)


def escaped(text: str) -> str:
    """Plain text as Markdown, for a paragraph or a cell; code in backquotes stays."""
    parts = re.split(r"(`[^`]*`)", text)
    plain = [re.sub(r"([\\*_<>|\[\]#])", r"\\\1", part) if not part.startswith("`") else part for part in parts]
    return "".join(plain)


# ---- the recipes -----------------------------------------------------------------------------------------------------


def recipes() -> str:
    """A table of all recipes, and what the header of each one says."""
    shipped = {name: path for name, path in shipped_recipes().items() if not name.startswith(("smoke/", "demo/"))}
    headers = {name: recipe_header(path.read_text(encoding="utf-8")) for name, path in shipped.items()}
    parts = [
        "# Recipes",
        "A recipe is a YAML file that names a run. Made from the headers of the files in `configs/`. Each has a "
        "tiny twin, `smoke/KIND_NAME`, that runs the same path on a CPU in seconds. `mvd-offline recipes show NAME "
        "--resolved` prints every key; `--set a.b=c` changes one.",
        "| recipe | what it reproduces |\n|---|---|\n"
        + "\n".join(f"| [`{name}`](#{anchor(name)}) | {escaped(header[0])} |" for name, header in headers.items()),
    ]
    for name, header in headers.items():
        text = "\n".join(line.lstrip("#").removeprefix(" ") for line in header_lines(shipped[name]))
        parts += [f"## {name} {{#{anchor(name)}}}", f"{escaped(header[0])}.", f"```text\n{text.strip()}\n```"]
    return "\n\n".join(parts) + "\n"


def header_lines(path: Path) -> list[str]:
    lines = path.read_text(encoding="utf-8").splitlines()
    return lines[1 : next(place for place, line in enumerate(lines) if not line.startswith("#"))]


def anchor(name: str) -> str:
    return name.replace("/", "-")


# ---- the keys of a recipe --------------------------------------------------------------------------------------------

KINDS = {"DistillRecipe": "distill", "PretrainRecipe": "pretrain", "FinetuneRecipe": "finetune"}


def recipe_keys() -> str:
    """What each section of a recipe may say: its class's fields, their defaults, and the text under each field."""
    folder = ROOT / "mvd_offline" / "recipe"
    trees = [ast.parse((folder / f"{name}.py").read_text(encoding="utf-8")) for name in FILES]
    classes = [node for tree in trees for node in tree.body if isinstance(node, ast.ClassDef)]
    parts = [
        "# Recipe keys",
        "Made from the code. A recipe of a kind has the keys of its table; a key whose type is a section has that "
        "section's. On the command line: `--set section.key=value`. `mvd-offline recipes show NAME --resolved` prints "
        "them all with their values.",
    ]
    for node in sorted(classes, key=lambda node: node.name not in KINDS):
        rows = list(fields_of(node))
        if rows:
            title = f"kind: {KINDS[node.name]}" if node.name in KINDS else node.name
            parts += [f"## {title} {{#{node.name.lower()}}}", escaped(ast.get_docstring(node) or "")]
            parts.append("| key | value | default | |\n|---|---|---|---|\n" + "\n".join(rows))
    return "\n\n".join(parts) + "\n"


FILES = ("kinds", "sections", "augmenting")


def fields_of(node: ast.ClassDef) -> Iterator[str]:
    for field, after in zip(node.body, [*node.body[1:], None], strict=True):
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
            text = after.value.value if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant) else ""
            meaning = escaped(" ".join(str(text).split()))
            default = "needed" if field.value is None else default_of(field.value)
            yield f"| `{field.target.id}` | {values_of(field.annotation)} | {default} | {meaning} |"


def values_of(annotation: ast.expr) -> str:
    """What a field may be, in words and with links to sections."""
    match annotation:
        case ast.BinOp(left, ast.BitOr(), ast.Constant(None)):
            return f"{values_of(left)}, or null"
        case ast.Subscript(ast.Name("Annotated"), ast.Tuple([kind, *_])):
            return values_of(kind)
        case ast.Subscript(ast.Name("Literal"), ast.Tuple(values)):
            return ", ".join(f"`{ast.literal_eval(value)}`" for value in values)
        case ast.Subscript(ast.Name("Literal"), value):
            return f"`{ast.literal_eval(value)}`"
        case ast.Name(name) if name.endswith("Section"):
            return f"[{name}](#{name.lower()})"
        case ast.Subscript(ast.Name("dict"), ast.Tuple([key, value])):
            return f"for each {values_of(key)}: {values_of(value)}"
        case ast.Name(name):
            return WORDS.get(name, f"`{name}`")
    return "`" + ast.unparse(annotation).replace("|", "\\|") + "`"


WORDS = {
    "str": "text",
    "int": "whole number",
    "float": "number",
    "bool": "`true`, `false`",
    "Positive": "whole number, 1 or more",
    "Fraction": "number, 0 to below 1",
    "TeacherName": "`image`, `video`",
    "Precision": "`no`, `fp16`, `bf16`",
    "Arch": "`vit_tiny`, `vit_small`, `vit_base`, `vit_large`, `vit_huge`",
}


def default_of(value: ast.expr) -> str:
    """A default as YAML has it; a section's is that of its keys."""
    if isinstance(value, ast.Call):
        return "its own"
    if not isinstance(value, ast.Constant):
        return f"`{ast.unparse(value)}`"
    found = value.value
    return "null" if found is None else f"`{str(found).lower() if isinstance(found, bool) else found}`"
