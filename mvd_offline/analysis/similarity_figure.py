"""Cross-frame similarity as a picture, models side by side, and as a table of numbers."""

from __future__ import annotations

import csv
import io
import itertools
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

from mvd_offline.analysis.similarity import DEFINITIONS, Definition, ModelSimilarity, Similarity
from mvd_offline.lettering import literal
from mvd_offline.shards.atomic import publish_bytes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.image import AxesImage

IN_WORDS: Final[dict[Definition, str]] = {"per_token": "token by token", "flattened": "maps as one vector"}

MOST_BESIDE: Final = 7
"""Models in a line of the picture."""

MOST_NUMBERED: Final = 10
"""Slices up to which the cells of a matrix carry their numbers."""


def draw_similarity(found: Similarity, out: Path) -> Path:
    """PNG: a row of matrices for each definition, a column for each model, and below how cosines fall with distance.

    All matrices share one scale of colours, so that models can be compared, as in the paper's figures 3 to 5.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    lines = [found.models[start : start + MOST_BESIDE] for start in range(0, len(found.models), MOST_BESIDE)]
    columns, rows = len(lines[0]), len(DEFINITIONS) * len(lines)
    figure = Figure(figsize=(max(2.7 * columns + 1.0, 6.4), 2.8 * rows + 2.8), layout="constrained")
    FigureCanvasAgg(figure)
    upper, lower = figure.subfigures(2, 1, height_ratios=(rows, 1), squeeze=False)[:, 0]
    grid = upper.subplots(rows, columns, squeeze=False)
    low = min(float(model.mean(definition).min()) for model in found.models for definition in DEFINITIONS)
    for row, (definition, models) in zip(grid, itertools.product(DEFINITIONS, lines), strict=True):
        for axes, model in itertools.zip_longest(row, models):
            if model is None:
                axes.set_axis_off()
            else:
                image = _draw_matrix(axes, model, definition, low)
        row[0].set_ylabel(f"{IN_WORDS[definition]}\nslice")
        upper.colorbar(image, ax=list(row), shrink=0.8, label="cosine")
    for axes, definition in zip(lower.subplots(1, len(DEFINITIONS), sharey=True), DEFINITIONS, strict=True):
        _draw_distances(axes, found, definition)
    figure.suptitle(
        f"Cosine similarity of the features of different frames: {found.clips} {literal(found.source)}\n"
        "above each matrix: mean of two different slices ± standard deviation over clips",
        fontsize=10,
    )
    with io.BytesIO() as sink:
        figure.savefig(sink, dpi=120, format="png")
        publish_bytes(out, sink.getvalue())
    return out


def _draw_matrix(axes: Axes, model: ModelSimilarity, definition: Definition, low: float) -> AxesImage:
    mean, other = model.mean(definition), model.other_slices(definition)
    image = axes.imshow(mean, vmin=low, vmax=1.0, cmap="viridis")
    axes.set_title(f"{literal(model.name)}\n{other.mean:.3f} ± {other.std:.3f}", fontsize=10)
    axes.set_xticks(range(model.slices))
    axes.set_yticks(range(model.slices))
    axes.tick_params(labelsize=7, length=0)
    _number(axes, mean, low)
    return image


def _number(axes: Axes, matrix: np.ndarray, low: float) -> None:
    if len(matrix) > MOST_NUMBERED:
        return
    for row, values in enumerate(matrix):
        for column, value in enumerate(values):
            # Dark ink on the bright end of the colours.
            ink = "black" if (value - low) / max(1.0 - low, 1e-9) > 0.6 else "white"
            text = "1" if value > 1.0 - 1e-6 else f"{value:.2f}".removeprefix("0")
            axes.text(column, row, text, ha="center", va="center", fontsize=6, color=ink)


def _draw_distances(axes: Axes, found: Similarity, definition: Definition) -> None:
    for model in found.models:
        spreads = model.by_distance(definition)
        mean, std = (np.array([getattr(one, what) for one in spreads]) for what in ("mean", "std"))
        (line,) = axes.plot(range(len(mean)), mean, marker="o", markersize=3, label=literal(model.name))
        axes.fill_between(range(len(mean)), mean - std, mean + std, color=line.get_color(), alpha=0.15, linewidth=0)
    axes.set_xticks(range(max(model.slices for model in found.models)))
    axes.set(xlabel="slices apart", ylabel="cosine", title=IN_WORDS[definition])
    axes.legend(frameon=False, fontsize=8)


def write_similarity_csv(found: Similarity, out: Path) -> Path:
    """One line for each model, definition and pair of slices: mean and standard deviation over the clips."""
    sink = io.StringIO()
    writer = csv.writer(sink, lineterminator="\n")
    writer.writerow(["model", "definition", "slice_i", "slice_j", "cosine_mean", "cosine_std", "clips"])
    for model in found.models:
        for definition in DEFINITIONS:
            mean, std = model.mean(definition), model.std(definition)
            for i in range(model.slices):
                for j in range(model.slices):
                    writer.writerow(
                        [model.name, definition, i, j, f"{mean[i, j]:.6f}", f"{std[i, j]:.6f}", found.clips]
                    )
    publish_bytes(out, sink.getvalue().encode())
    return out
