"""Statistics of a column: of its values, taken in a row at a time, and of what coding cost its rows."""

from __future__ import annotations

import random
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from mvd_offline.shards.index import ColumnIndex
from mvd_offline.shards.jpeg import psnr

QUANTILES: Final = {"min": 0.0, "p05": 0.05, "median": 0.5, "p95": 0.95, "max": 1.0}
"""Name and share of the values below it."""

OUTLIER_RATIO: Final = 5.0
"""A channel whose root mean square is this many times the median channel's stands out."""


def quantiles(values: NDArray[Any]) -> dict[str, float]:
    """The values' quantiles, by the names in `QUANTILES`."""
    return dict(zip(QUANTILES, np.quantile(values, list(QUANTILES.values())).tolist(), strict=True))


def spread_rows(ids: NDArray[np.int64], most: int) -> NDArray[np.int64]:
    """Up to `most` of the ids, evenly spread, ascending."""
    return ids[np.unique(np.linspace(0, len(ids) - 1, min(most, len(ids))).round().astype(np.int64))]


def drawn_rows(ids: NDArray[np.int64], most: int, seed: int) -> NDArray[np.int64]:
    """Up to `most` of the ids, drawn at random, ascending; the same for the same ids and seed."""
    chosen = random.Random(seed).sample(range(len(ids)), min(most, len(ids)))
    return ids[np.sort(np.array(chosen, np.int64))]


# ---- values ------------------------------------------------------------------------------------------------------


def slice_cosines(maps: NDArray[np.float64]) -> NDArray[np.float64]:
    """Cosines of the tokens of two slices at the same place, mean over places: (t, places, D) to (t, t)."""
    units = maps / np.maximum(np.linalg.norm(maps, axis=2, keepdims=True), np.finfo(np.float64).tiny)
    places = units.transpose(1, 0, 2)
    cosines: NDArray[np.float64] = (places @ places.transpose(0, 2, 1)).mean(0)
    return cosines


class FeatureStatistics:
    """Statistics over the features of some rows; memory is a few rows, and four bytes for each token that came.

    Args:
        slices: how many slices in time a row's tokens are; they come in t, h, w order.
    """

    def __init__(self, tokens: int, width: int, slices: int = 1) -> None:
        self.tokens, self.width, self.slices = tokens, width, slices
        self.rows = 0
        self._total, self._squares = np.zeros(width), np.zeros(width)
        self._low, self._high = np.inf, -np.inf
        self._norms: list[NDArray[np.float32]] = []
        self._cosines = np.zeros((slices, slices))

    def add(self, features: NDArray[Any]) -> None:
        """Take in one row, (N, D) of any float dtype."""
        values = features.astype(np.float64)
        self.rows += 1
        self._total += values.sum(0)
        self._squares += np.einsum("nd,nd->d", values, values)
        self._low, self._high = min(self._low, float(values.min())), max(self._high, float(values.max()))
        norms = np.sqrt(np.einsum("nd,nd->n", values, values))
        self._norms.append(norms.astype(np.float32))
        self._cosines += slice_cosines(values.reshape(self.slices, -1, self.width))

    def summary(self, outliers: int = 10) -> dict[str, Any]:
        """Mean, std, min and max of the values, quantiles of the tokens' norms and the channels' root mean squares.

        `outlier_channels` are the `outliers` channels with the largest root mean square: a few channels that are many
        times the median one decide which codec is safe.
        """
        count = self.rows * self.tokens
        mean = float(self._total.sum() / (count * self.width))
        variance = float(self._squares.sum() / (count * self.width)) - mean**2
        return {
            "rows": self.rows,
            "values": count * self.width,
            "mean": mean,
            "std": max(variance, 0.0) ** 0.5,
            "min": self._low,
            "max": self._high,
            "token_norm": quantiles(np.concatenate(self._norms)),
            "channel_rms": quantiles(self.channel_rms()),
            "outlier_channels": self._outliers(outliers),
        }

    def norm_histogram(self, bins: int = 48) -> tuple[list[int], list[float]]:
        """How many tokens have a norm between each two neighbours of the `bins + 1` edges; counts, and edges."""
        counts, edges = np.histogram(np.concatenate(self._norms), bins=bins)
        return counts.tolist(), edges.tolist()

    def channel_rms(self) -> NDArray[np.float64]:
        """Root mean square of each channel over rows and tokens."""
        rms: NDArray[np.float64] = np.sqrt(self._squares / (self.rows * self.tokens))
        return rms

    def slice_cosines(self) -> NDArray[np.float64]:
        """(t, t): cosine of the tokens of two slices at the same place, mean over places and rows."""
        return self._cosines / self.rows

    def _outliers(self, most: int) -> list[dict[str, Any]]:
        rms, mean = self.channel_rms(), self._total / (self.rows * self.tokens)
        median = float(np.median(rms))
        return [
            {
                "channel": int(channel),
                "rms": float(rms[channel]),
                "mean": float(mean[channel]),
                "ratio_to_median": float(rms[channel] / median) if median else None,
            }
            for channel in np.argsort(-rms, kind="stable")[:most]
        ]


# ---- what coding cost --------------------------------------------------------------------------------------------


def coding_summary(index: ColumnIndex) -> dict[str, Any] | None:
    """What coding cost a column's rows, as its records say; None while no row has a target.

    `relative_error` is the L2 norm of a row's difference over that of the row; cosines are those of its token vectors.
    """
    ids = np.flatnonzero(index.ok)
    if not len(ids):
        return None
    error, cosine_min, cosine_mean, largest = (
        index.coding[name][ids] for name in ("relative_error", "cosine_min", "cosine_mean", "max_abs_error")
    )
    return {
        "rows": len(ids),
        "relative_error": {"mean": float(error.mean()), **quantiles(error)},
        "worst_view": int(ids[error.argmax()]),
        "cosine": {"mean": float(cosine_mean.mean()), "min": float(cosine_min.min())},
        "max_abs_error": float(largest.max()),
    }


def psnr_summary(index: ColumnIndex) -> dict[str, float] | None:
    """PSNR in dB of a store's baked clips: of their mean square error, and of the worst clip.

    None while there is no clip, or none that lost anything.
    """
    errors = index.coding["relative_error"][index.ok]
    if not len(errors) or not errors.any():
        return None
    return {"mean": psnr(float(np.sqrt(np.square(errors).mean()))), "worst": psnr(float(errors.max()))}
