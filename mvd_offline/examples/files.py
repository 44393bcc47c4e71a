"""The pictures of a run's `examples/`, and `examples.json` beside them, which says what they show. No torch."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mvd_offline.shards.atomic import make_folder, publish_bytes, remove_file

FOLDER: Final = "examples"
INDEX: Final = "examples.json"
SIDE: Final = 128
"""Longest side of a cell of a strip, pixels."""


@dataclass(frozen=True)
class Film:
    """A row of pictures of one example, cells side by side in one file.

    Attributes:
        pixels: uint8 (cells, H, W, 3); what `write_examples` writes. None of one that was read.
        file: its PNG in the folder.
        cells: how many pictures the file holds.
    """

    name: str
    note: str = ""
    pixels: NDArray[np.uint8] | None = field(default=None, compare=False)
    file: str = ""
    cells: int = 1


@dataclass(frozen=True)
class Answer:
    """What a classifier gives a class."""

    name: str
    probability: float
    true: bool


@dataclass(frozen=True)
class Example:
    """One clip, or several images side by side.

    Attributes:
        ticks: what each cell of its films is, such as `frame 12`.
    """

    title: str
    note: str
    ticks: tuple[str, ...]
    films: tuple[Film, ...]
    answers: tuple[Answer, ...] = ()


@dataclass(frozen=True)
class Examples:
    """All of a run; `lead` says what they are."""

    lead: str
    examples: tuple[Example, ...]


def write_examples(run: Path, lead: str, examples: Sequence[Example]) -> None:
    """Replace a run's examples; the index goes first and comes last: a kill leaves none without what it names."""
    folder = run / FOLDER
    if folder.is_dir():
        remove_file(folder / INDEX)
        shutil.rmtree(folder)
    make_folder(folder)
    written = [_written(folder, number, example) for number, example in enumerate(examples, 1)]
    index = {"lead": lead, "examples": [_plain(example) for example in written]}
    publish_bytes(folder / INDEX, json.dumps(index, indent=2, ensure_ascii=False).encode() + b"\n")


def have_examples(run: Path) -> bool:
    return read_examples(run) is not None


def read_examples(run: Path) -> Examples | None:
    """A run's examples without their pixels; None where it has none, or a picture of them is gone."""
    index = run / FOLDER / INDEX
    if not index.is_file():
        return None
    data = json.loads(index.read_text(encoding="utf-8"))
    found = Examples(
        data["lead"],
        tuple(
            Example(
                one["title"],
                one["note"],
                tuple(one["ticks"]),
                tuple(Film(**film) for film in one["films"]),
                tuple(Answer(**answer) for answer in one["answers"]),
            )
            for one in data["examples"]
        ),
    )
    films = (film for example in found.examples for film in example.films)
    return found if all(_file_of(run, film).is_file() for film in films) else None


def cells_of(run: Path, film: Film) -> list[bytes]:
    """A film's pictures, each as PNG."""
    with Image.open(_file_of(run, film), formats=("PNG",)) as strip:
        width = strip.width // film.cells
        return [_png(strip.crop((cell * width, 0, (cell + 1) * width, strip.height))) for cell in range(film.cells)]


def _file_of(run: Path, film: Film) -> Path:
    return run / FOLDER / Path(film.file).name


def _written(folder: Path, number: int, example: Example) -> Example:
    films = []
    for film in example.films:
        assert film.pixels is not None
        file = f"{number}-{film.name.replace(' ', '-')}.png"
        cells = [_small(cell) for cell in film.pixels]
        strip = Image.fromarray(np.concatenate([np.asarray(cell) for cell in cells], axis=1))
        publish_bytes(folder / file, _png(strip))
        films.append(replace(film, pixels=None, file=file, cells=len(cells)))
    return replace(example, films=tuple(films))


def _plain(example: Example) -> dict[str, Any]:
    data = asdict(example)
    for film in data["films"]:
        del film["pixels"]
    return data


def _small(pixels: NDArray[np.uint8]) -> Image.Image:
    picture = Image.fromarray(pixels)
    picture.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    return picture


def _png(picture: Image.Image) -> bytes:
    sink = io.BytesIO()
    picture.save(sink, "PNG")
    return sink.getvalue()
