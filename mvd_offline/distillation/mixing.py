"""Several stores in one run: the rows of an epoch, and the targets of a micro-batch, from all of them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from mvd_offline.distillation.rows import RunRows
from mvd_offline.distillation.samples import Samples
from mvd_offline.errors import UsageError
from mvd_offline.recipe import TeacherName
from mvd_offline.shards.schema import sha256_of
from mvd_offline.targets import CachedReader, CachedTargets


@dataclass(frozen=True)
class StoreShare:
    """A store of a run, and how much of it an epoch takes."""

    folder: Path
    weight: float = 1.0
    """Rows that an epoch takes, as a share of one pass over the store: 2 is two passes, 0.5 half of one."""
    root: Path | None = None
    """Folder of its videos, when it is not the one that the store remembers."""

    def __post_init__(self) -> None:
        if not (math.isfinite(self.weight) and self.weight > 0):
            raise UsageError(f"--mix {self.weight:g} of {self.folder}: allowed are weights above 0, such as 0.5 or 2")


class MixedSamples:
    """An epoch takes weight * rows rows of each store, rounded to whole videos, spread evenly over the epoch.

    The clips of a video (`view.num_sample`) stay side by side. As in a run on one store, they share a micro-batch as
    long as no clip failed and their number divides it.

    Each store is passed over again and again, pass p in the order that its own run has in epoch p (of group p mod V);
    an epoch goes on where the one before ended, so that a store of weight 0.5 is seen whole in two epochs, and one of
    weight 1 has its own epoch in each. All is a function of the stores, their weights, the seed and the epoch.
    """

    def __init__(self, parts: Sequence[Samples], weights: Sequence[float], rows: RunRows) -> None:
        """`parts`, with their weights, are the samples of the stores of `rows`, in the same order."""
        self._parts, self._weights, self._rows = tuple(parts), tuple(weights), rows
        self._each = [part.per_epoch() for part in parts]
        self._clips = rows.clips
        self.taken = [self._share(weight, each) for weight, each in zip(weights, self._each, strict=True)]
        """Rows that an epoch takes of each store."""
        for share, taken, each in zip(weights, self.taken, self._each, strict=True):
            if not taken:
                raise UsageError(
                    f"--mix {share:g} takes no row of a store that has {each} usable rows in its smallest group; give "
                    "it a greater weight, or leave the store out."
                )
        self.source = sha256_of([[part.source, weight] for part, weight in zip(parts, weights, strict=True)])

    def names(self) -> dict[str, str]:
        named = enumerate(zip(self._parts, self._weights, strict=True))
        return {
            f"{name}_of_store_{place}": value
            for place, (part, weight) in named
            for name, value in {**part.names(), "weight": repr(weight)}.items()
        }

    def order(self, epoch: int) -> NDArray[np.int64]:
        return interleave([self._taken(place, epoch) for place in range(len(self._parts))], together=self._clips)

    def per_epoch(self) -> int:
        return sum(self.taken)

    def _share(self, weight: float, each: int) -> int:
        # Of a store in which single clips failed, videos would not end where they should anyway.
        unit = 1 if each % self._clips else self._clips
        return unit * round(weight * each / unit)

    def _taken(self, place: int, epoch: int) -> NDArray[np.int64]:
        """The rows of one store: a slice of its passes, laid end to end."""
        taken, each = self.taken[place], self._each[place]
        start, stop = epoch * taken, (epoch + 1) * taken
        first = start // each
        pieces = []
        for number in range(first, -(-stop // each)):
            rows = self._parts[place].order(number)[:each]
            piece = rows[max(0, start - number * each) : stop - number * each]
            # A row that comes twice in an epoch has another number, and so another mask, the second time.
            pieces.append(self._rows.numbers(place, piece, number - first))
        return np.concatenate(pieces)


def interleave(sequences: Sequence[NDArray[np.int64]], *, together: int = 1) -> NDArray[np.int64]:
    """One sequence of all, each in its own order and spread evenly: any stretch has its share of each.

    Args:
        together: so many neighbours of a sequence stay neighbours, counted from its start.
    """
    pieces = [np.arange(len(one)) // together for one in sequences]
    places = [(piece + 0.5) / (piece[-1] + 1) for piece in pieces]
    return np.concatenate(sequences)[np.argsort(np.concatenate(places), kind="stable")]


class MixedReader:
    """Reads each row of a micro-batch from its own store, to its place in the batch's memory."""

    def __init__(self, readers: Sequence[CachedReader], rows: RunRows) -> None:
        """`readers` are of stores that are coded alike."""
        self._readers, self._rows = tuple(readers), rows

    def sizes(self, student_size: int) -> tuple[int, ...]:
        return self._readers[0].sizes(student_size)

    def read(self, view_ids: Sequence[int], tokens: NDArray[np.int64] | None) -> dict[str, Tensor]:
        """`view_ids` are the run's row numbers."""
        batch, arrays = self._readers[0].memory(len(view_ids), tokens)
        for part, here, views in self._rows.stretches(view_ids):
            self._readers[part].fill(
                {name: array[here] for name, array in arrays.items()}, views, None if tokens is None else tokens[here]
            )
        return batch


class MixedTargets:
    """The stored targets of several stores, coded alike."""

    def __init__(self, sources: Sequence[CachedTargets], rows: RunRows) -> None:
        self.reader = MixedReader([source.reader for source in sources], rows)
        self.widths: dict[TeacherName, int] = sources[0].widths
        self._source = sources[0]

    def targets(
        self, stored: Mapping[str, Tensor], clips: Mapping[int, Tensor], tokens: Tensor | None
    ) -> dict[str, Tensor]:
        return self._source.targets(stored, clips, tokens)
