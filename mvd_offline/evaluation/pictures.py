"""The confusion matrix as a picture, from a few classes to several hundred."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mvd_offline.lettering import literal
from mvd_offline.shards.atomic import temporary_file

_COUNTED, _NAMED = 24, 120
"""Most classes whose cells say their number of videos, and whose rows and columns say their names."""
_WORST = 20
_AXIS_NAME, _LIST_NAME = 44, 66
"""Most letters of a class's name on an axis, and in the list."""
_DPI = 110
_LIST_SIZE, _LETTER_INCHES, _LINE_INCHES = 8, 0.067, 0.142
"""Of the list: points, and what a letter and a line take of its monospaced font."""
_MARGIN_INCHES = 0.3


def draw_confusion(table: NDArray[np.int64], names: Sequence[str], path: Path) -> None:
    """A row a label, a column an answer, coloured by the share of the row; beside it the pairs most often confused.

    Of more than 120 classes the axes give numbers, which the list beside it names.

    Args:
        table: (classes, classes + 1), the last column for unreadable videos; shown where it is not empty.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    classes = len(names)
    shown = table if table[:, -1].any() else table[:, :-1]
    # Sizes are set by hand: matplotlib's layout engines take minutes to measure hundreds of names.
    size = 9.0 if classes <= _COUNTED else 7.0
    cell = 0.42 if classes <= _COUNTED else 0.13 if classes <= _NAMED else 0.04
    text = 0.5 + 0.0092 * size * max(len(label) for label in _axis_labels(names, shown.shape[1]))
    wide, high = (max(1.6, cell * count) for count in reversed(shown.shape))
    said = _worst(table[:, :-1], names)
    lines = said.splitlines()
    list_wide, list_high = _LETTER_INCHES * max(map(len, lines)), _LINE_INCHES * len(lines)
    size_inches = (
        text + wide + list_wide + 2 * _MARGIN_INCHES,
        max(text + high, list_high + _MARGIN_INCHES) + _MARGIN_INCHES,
    )
    figure = Figure(figsize=size_inches, dpi=_DPI)
    FigureCanvasAgg(figure)
    top = 1 - _MARGIN_INCHES / size_inches[1]
    box = (text / size_inches[0], top - high / size_inches[1], wide / size_inches[0], high / size_inches[1])
    _draw_matrix(figure.add_axes(box), shown, names, size)
    left = (text + wide + _MARGIN_INCHES) / size_inches[0]
    figure.text(left, top, said, va="top", fontsize=_LIST_SIZE, family="monospace")
    path.parent.mkdir(parents=True, exist_ok=True)
    with temporary_file(path) as temporary:
        figure.savefig(temporary.stream, format="png")
        temporary.publish()


def _draw_matrix(axes: Any, table: NDArray[np.int64], names: Sequence[str], size: float) -> None:
    from matplotlib.colors import PowerNorm

    totals = table.sum(axis=1, keepdims=True)
    shares = np.divide(table, totals, out=np.zeros(table.shape), where=totals > 0)
    # Mistakes are rare beside right answers; on a linear scale they would not be seen.
    axes.imshow(shares, cmap="Blues", norm=PowerNorm(0.4, 0, 1), interpolation="nearest", aspect="auto")
    for axis, labels, rotation in (
        (axes.xaxis, _axis_labels(names, table.shape[1]), 90),
        (axes.yaxis, _axis_labels(names, len(names)), 0),
    ):
        places = [place for place, label in enumerate(labels) if label]
        axis.set_ticks(places, [labels[place] for place in places], fontsize=size, rotation=rotation)
    axes.tick_params(length=2 if len(names) > _NAMED else 0)
    axes.set_xlabel("answer")
    axes.set_ylabel("label")
    if len(names) <= _COUNTED:
        for row, column in np.argwhere(table > 0):
            colour = "white" if shares[row, column] > 0.3 else "black"
            axes.text(column, row, table[row, column], ha="center", va="center", fontsize=8, color=colour)


def _axis_labels(names: Sequence[str], count: int) -> list[str]:
    """One for each row or column, empty where none is shown."""
    if len(names) > _NAMED:
        labels = [str(k) if k % 10 == 0 else "" for k in range(len(names))]
    else:
        labels = [_short(name, _AXIS_NAME) for name in names]
    return labels + ["unreadable"] * (count - len(names))


def _worst(table: NDArray[np.int64], names: Sequence[str]) -> str:
    """The most frequent mistakes in words: of several hundred classes no picture shows them at a glance."""
    errors = table.copy()
    np.fill_diagonal(errors, 0)
    order = np.argsort(-errors, axis=None, kind="stable")[:_WORST]
    pairs = [(int(k) // len(names), int(k) % len(names)) for k in order if errors.flat[k] > 0]
    number = len(names) > _NAMED
    said = [f"{k} " * number + _short(name, _LIST_NAME) for k, name in enumerate(names)]
    if all(name.isdecimal() for name in names):
        said = [f"class {name}" for name in names]  # beside counts, a bare number says nothing
    lines = [f"{errors[a, b]} of {table[a].sum()}  {said[a]}\n   taken for  {said[b]}" for a, b in pairs]
    head = f"{np.trace(table)} of {table.sum()} videos that could be read are right.\n"
    colours = "The darker a cell, the larger its share of the label's videos.\n"
    return f"{head}{colours}\nMost often confused:\n\n" + ("\n".join(lines) or "none")


def _short(name: str, length: int) -> str:
    """A name in a line; Something-Something's are sentences."""
    line = textwrap.shorten(name, length, placeholder=" ...") if " " in name else name[:length]
    return literal(line)
