"""The walls of the house: which room may import which, and what nothing may do."""

from __future__ import annotations

import ast
import resource
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import mvd_offline

PACKAGE = Path(mvd_offline.__file__).parent
LINKS = ("cli", "shards", "configs")


# ---- reading imports ---------------------------------------------------------------------------------------------


def python_files() -> list[Path]:
    """Every source file of the package once; the three links are followed."""
    here = [path for path in PACKAGE.rglob("*.py") if path.relative_to(PACKAGE).parts[0] not in LINKS]
    linked = [path for link in LINKS for path in (PACKAGE / link).rglob("*.py")]
    return sorted(here + linked)


def module_name(path: Path) -> str:
    parts = ("mvd_offline", *path.relative_to(PACKAGE).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


MODULES = {module_name(path): path for path in python_files()}


def resolve(node: ast.Import | ast.ImportFrom, importer: str) -> Iterator[str]:
    """The modules that an import statement loads, as far as its text tells."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
        return
    base = node.module or ""
    if node.level:
        package = importer.split(".") if MODULES[importer].name == "__init__.py" else importer.split(".")[:-1]
        base = ".".join(package[: len(package) - node.level + 1] + ([base] if base else []))
    for alias in node.names:
        yield f"{base}.{alias.name}" if f"{base}.{alias.name}" in MODULES else base


@cache
def imports_of(module: str, *, at_top_level_only: bool = False) -> frozenset[str]:
    """Modules that `module` imports: anywhere, or only while it is itself imported."""
    found: set[str] = set()
    pending: list[ast.AST] = [tree_of(MODULES[module])]
    while pending:
        for node in ast.iter_child_nodes(pending.pop()):
            if isinstance(node, ast.Import | ast.ImportFrom):
                found.update(resolve(node, module))
            elif at_top_level_only and (is_function(node) or is_type_checking_block(node)):
                continue
            else:
                pending.append(node)
    return frozenset(found)


def is_function(node: ast.AST) -> bool:
    return isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)


def is_type_checking_block(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")


def room(module: str) -> str:
    """`mvd_offline.models.vit` -> `models`; `mvd_offline.recipe` -> `recipe`."""
    return [*module.split("."), ""][1]


def ours(modules: frozenset[str]) -> set[str]:
    return {name for name in modules if name == "mvd_offline" or name.startswith("mvd_offline.")}


def in_room(name: str) -> list[str]:
    return [module for module in MODULES if room(module) == name]


def reachable(module: str, skip: frozenset[str] = frozenset()) -> set[str]:
    """Modules of ours that importing `module` can lead to, without going through `skip`."""
    seen: set[str] = set()
    pending = [module]
    while pending:
        for name in ours(imports_of(pending.pop())) & MODULES.keys() - seen - skip:
            seen.add(name)
            pending.append(name)
    return seen


def loaded_by(statement: str) -> set[str]:
    """Top-level names in sys.modules after a statement in a fresh interpreter."""
    code = f"{statement}\nimport sys\nprint(' '.join(sorted({{name.partition('.')[0] for name in sys.modules}})))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


# ---- the walls ---------------------------------------------------------------------------------------------------


def test_the_reader_of_imports_sees_what_is_there() -> None:
    assert {"mvd_offline.cli.main", "mvd_offline.shards.errors", "mvd_offline.recipe"} <= MODULES.keys()
    assert "mvd_offline.errors" in imports_of("mvd_offline.recipe.loading")
    assert "rich.table" in imports_of("mvd_offline.cli.recipes")
    assert "rich.table" not in imports_of("mvd_offline.cli.recipes", at_top_level_only=True)


def test_shards_imports_no_other_room_and_no_torch() -> None:
    for module in in_room("shards"):
        others = {name for name in ours(imports_of(module)) if room(name) not in ("shards", "")}
        assert not others, f"{module} imports {others}"
        assert "torch" not in {name.partition(".")[0] for name in imports_of(module)}, module


def test_nothing_imports_the_command_line_but_itself() -> None:
    for module in MODULES:
        if room(module) not in ("cli", "__main__"):
            importing = {name for name in imports_of(module) if name.startswith("mvd_offline.cli")}
            assert not importing, f"{module} imports {importing}"


def test_video_reaches_no_torch() -> None:
    for module in in_room("video"):
        for name in {module, *reachable(module)}:
            assert "torch" not in {part.partition(".")[0] for part in imports_of(name)}, (
                f"{module} reaches torch by {name}"
            )


def test_one_file_joins_a_launch() -> None:
    for module, path in MODULES.items():
        calls = [ast.unparse(node.func) for node in ast.walk(tree_of(path)) if isinstance(node, ast.Call)]
        assert ("Accelerator" in calls) == (module == "mvd_offline.processes"), module


def test_models_and_video_do_not_import_each_other() -> None:
    for one, other in (("models", "video"), ("video", "models")):
        for module in in_room(one):
            assert other not in {room(name) for name in ours(imports_of(module))}, module


LAYERS = [
    {"shards"},
    {"errors"},
    {"recipe", "geometry", "randomness", "local", "processes", "progress", "coding", "sheet", "units", "lettering"},
    {"models", "video", "losses"},
    {
        "training",
        "targets",
        "extraction",
        "distillation",
        "finetuning",
        "evaluation",
        "accounting",
        "hours",
        "runs",
    },
    # One file a job; the frame of the package and the command line come on top.
    {
        "extract",
        "distill",
        "pretrain",
        "finetune",
        "evaluate",
        "probing",
        "webdataset_export",
        "planner",
        "measuring",
        "costs",
        "inspection",
        "report",
        "examples",
        "recompute",
        "curves",
        "compare",
        "analysis",
        "bench",
        "demo",
        "doctor",
        "model_card",
    },
    {"cli"},
    {"__main__"},
]
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}


def test_imports_run_one_way() -> None:
    upward = [
        f"{module} -> {name}"
        for module in MODULES
        for name in ours(imports_of(module))
        if room(module) in LEVEL and room(name) in LEVEL and LEVEL[room(name)] > LEVEL[room(module)]
    ]
    assert not upward


def test_every_room_has_its_place_in_the_layers() -> None:
    rooms = {room(module) for module in MODULES} - {"", "configs"}

    assert rooms <= LEVEL.keys(), f"give {rooms - LEVEL.keys()} a place in LAYERS"


def test_distill_reaches_teachers_only_through_targets() -> None:
    if "mvd_offline.distill" not in MODULES:
        pytest.skip("distill.py is not there")
    roundabout = reachable("mvd_offline.distill", skip=frozenset({"mvd_offline.targets"}))

    assert "mvd_offline.models.teachers" not in roundabout


def test_there_are_no_circles_between_modules() -> None:
    state: dict[str, str] = {}

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert state.get(module) != "open", " -> ".join((*path[path.index(module) :], module))
        if module in state:
            return
        state[module] = "open"
        for name in sorted(ours(imports_of(module, at_top_level_only=True)) & MODULES.keys()):
            # A package's __init__ is loaded before its modules; importing one's own package is no circle.
            if name != module and not module.startswith(f"{name}."):
                visit(name, (*path, module))
        state[module] = "closed"

    for module in MODULES:
        visit(module, ())


# ---- what nothing may do -----------------------------------------------------------------------------------------


def sources() -> list[Path]:
    """The package's files and the tests."""
    return [*MODULES.values(), *sorted(Path(__file__).parents[1].rglob("*.py"))]


def calls(path: Path) -> Iterator[tuple[int, str, dict[str, str]]]:
    """(line, callee, keyword arguments as text) of each call in a file."""
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Call):
            keywords = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords if keyword.arg}
            yield node.lineno, ast.unparse(node.func), keywords


def imported_roots(path: Path) -> Iterator[tuple[int, str]]:
    """(line, top-level name) of each absolute import in a file, wherever it stands."""
    for node in ast.walk(tree_of(path)):
        # The error that torch.load raises may be caught by its name, which unpickles nothing.
        if ast.unparse(node) == "from pickle import UnpicklingError":
            continue
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name.partition(".")[0]) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield node.lineno, (node.module or "").partition(".")[0]


@pytest.mark.parametrize("path", list(MODULES.values()), ids=lambda path: path.name)
def test_a_file_imports_no_unpickler(path: Path) -> None:
    found = [line for line, name in imported_roots(path) if name in {"pickle", "dill", "cloudpickle", "joblib"}]

    assert not found, f"{path}, lines {found}"


@pytest.mark.parametrize("path", sources(), ids=lambda path: path.name)
def test_a_file_names_the_package_in_full(path: Path) -> None:
    found = [line for line, name in imported_roots(path) if name in LINKS]

    assert not found, f"{path}, lines {found}: import mvd_offline.shards, not shards"


@pytest.mark.parametrize("path", sources(), ids=lambda path: path.name)
def test_a_file_reads_data_only_in_safe_ways(path: Path) -> None:
    for line, callee, keywords in calls(path):
        where = f"{path}:{line}"
        if callee == "torch.load":
            assert keywords.get("weights_only") == "True", where
        if callee in ("np.load", "numpy.load"):
            assert keywords.get("allow_pickle") == "False", where
        assert callee not in ("yaml.load", "yaml.unsafe_load", "yaml.full_load"), where
        assert keywords.get("allow_pickle") != "True", where


@pytest.mark.parametrize("path", list(MODULES.values()), ids=lambda path: path.name)
def test_a_file_swallows_no_exception(path: Path) -> None:
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.ExceptHandler):
            where = f"{path}:{node.lineno}"
            assert node.type is not None, f"{where}: bare except"
            broad = ast.unparse(node.type) in ("Exception", "BaseException")
            silent = all(isinstance(statement, ast.Pass) for statement in node.body)
            assert not (broad and silent), f"{where}: everything is swallowed"


ARROW = frozenset({"compute", "csv", "dataset", "fs", "ipc", "parquet"})
"""Modules of pyarrow that `import pyarrow` does not load."""


@pytest.mark.parametrize("path", list(MODULES.values()), ids=lambda path: path.name)
def test_a_file_imports_the_module_of_pyarrow_that_it_uses(path: Path) -> None:
    used = {
        node.attr
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) in ("pa", "pyarrow")
    }

    assert not used & ARROW, f"{path}: import pyarrow.{', '.join(used & ARROW)} by name: others may not have loaded it"


# ---- start-up ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "statement",
    ["import mvd_offline", "import mvd_offline.cli.main", "import mvd_offline.recipe", "import mvd_offline.shards"],
)
def test_importing_loads_no_torch(statement: str) -> None:
    loaded = loaded_by(statement)

    assert "mvd_offline" in loaded
    assert not loaded & {"torch", "timm", "decord", "av", "accelerate", "zarr", "matplotlib"}


def test_importing_a_command_loads_no_torch() -> None:
    commands = [module for module in in_room("cli") if module != "mvd_offline.cli"]
    loaded = loaded_by("\n".join(f"import {module}" for module in commands))

    assert not loaded & {"torch", "timm", "decord", "av", "accelerate", "zarr", "matplotlib"}


def test_counting_costs_loads_no_trainer() -> None:
    # Imports are most of what a dry run takes.
    loaded = loaded_by("import mvd_offline.costs.dry_run")

    assert "torch" in loaded
    assert not loaded & {"accelerate", "timm", "decord", "av", "tensorboard"}


def test_help_answers_within_300_ms() -> None:
    def seconds() -> float:
        # Processor time: the wall time of an idle machine, whatever else this one is doing.
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, "-m", "mvd_offline", "--help"], check=True, capture_output=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return (after.ru_utime + after.ru_stime) - (before.ru_utime + before.ru_stime)

    assert min(seconds() for _ in range(5)) < 0.3


def test_help_loads_no_command_and_nothing_heavy() -> None:
    code = (
        "import sys\nfrom mvd_offline.cli.main import main\nmain(['--help'])\n"
        "print(*sys.modules, file=sys.stderr, sep=chr(10))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(done.stderr.split())

    assert "extract" in done.stdout
    assert {name for name in loaded if name.startswith("mvd_offline.cli.")} == {"mvd_offline.cli.main"}
    assert not loaded & {"torch", "numpy", "pydantic", "yaml", "rich", "pyarrow"}
