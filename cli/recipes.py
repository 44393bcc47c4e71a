"""`mvd-offline recipes`: the recipes that ship."""

from __future__ import annotations

from typing import Annotated

import typer

from mvd_offline.cli.common import JsonOption, RecipeArgument, SetOption, print_json, print_table

app = typer.Typer(no_args_is_help=True, add_completion=False, help="The recipes that ship.")


@app.command("list")
def list_recipes(as_json: JsonOption = False) -> None:
    """List the recipes: name, kind and what each one reproduces."""
    from mvd_offline.recipe import recipe_header, shipped_recipes

    rows = []
    for name, path in shipped_recipes().items():
        text = path.read_text(encoding="utf-8")
        rows.append({"name": name, "kind": _kind(text), "reproduces": recipe_header(text)[0]})
    if as_json:
        print_json(rows)
        return

    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    table.add_column("name", no_wrap=True)
    table.add_column("kind")
    table.add_column("what it reproduces")
    for row in rows:
        table.add_row(row["name"], row["kind"], row["reproduces"])
    print_table(table)


@app.command()
def show(
    recipe: RecipeArgument,
    overrides: SetOption = None,
    resolved: Annotated[bool, typer.Option("--resolved", help="Every key, defaults and overrides included.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Print a recipe: the file as it is, or with --resolved what a run would use."""
    from mvd_offline.recipe import dump_recipe, find_recipe, load_recipe

    loaded = load_recipe(recipe, overrides or ())
    if as_json:
        print_json(loaded.model_dump(mode="json", exclude_unset=not resolved))
    elif resolved or overrides:
        typer.echo(dump_recipe(loaded), nl=False)
    else:
        typer.echo(find_recipe(recipe).read_text(encoding="utf-8"), nl=False)


def _kind(text: str) -> str:
    # A line of the file says it: listing parses no YAML, which would take most of its time.
    return next(line.partition(":")[2].strip() for line in text.splitlines() if line.startswith("kind:"))
