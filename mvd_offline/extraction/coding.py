"""Features coded where they were computed, and what that costs, held against what a column allows."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mvd_offline.coding import as_coding_error, coding_errors, decode, encode, is_finite
from mvd_offline.shards.codecs import CODECS, CodingError, get_codec, measure_error
from mvd_offline.shards.errors import CodecError
from mvd_offline.shards.schema import ColumnSpec, RowRecord


@dataclass(frozen=True)
class CodedBatch:
    """A teacher's features of one batch, and their coded rows in the memory of the writer."""

    codec: str
    features: Tensor
    """Float32 (B, N, D), where they were computed."""
    rows: NDArray[Any]
    """(B, rows, columns) in the codec's dtype."""
    errors: tuple[CodingError, ...]
    finite: tuple[bool, ...]

    @classmethod
    def of(cls, features: Tensor, codec: str) -> CodedBatch:
        return BegunBatch.of(features, codec).finish()

    def row(self, slot: int) -> tuple[NDArray[Any], CodingError]:
        """What is stored of one row, and what that costs.

        Raises:
            CodecError: the codec cannot hold the features.
        """
        if not self.finite[slot]:
            get_codec(self.codec).encode(self.features[slot].cpu().numpy())  # says which value, and what to do
        return self.rows[slot], self.errors[slot]


@dataclass(frozen=True)
class BegunBatch:
    """A `CodedBatch` that a GPU may still be computing, and copying here."""

    codec: str
    features: Tensor
    _coded: Tensor
    _stored: Tensor
    _measured: Tensor
    _finite: Tensor
    _done: torch.cuda.Event | None
    """None where all is done already."""

    @classmethod
    @torch.inference_mode()
    def of(cls, features: Tensor, codec: str) -> BegunBatch:
        coded = encode(features, codec)
        measured = coding_errors(features, decode(coded, codec))
        stored = coded.view(torch.uint16) if coded.dtype == torch.bfloat16 else coded
        finite = is_finite(coded) & features.isfinite().all(dim=2).all(dim=1)
        stored, measured, finite = (_to_host(part) for part in (stored, measured, finite))
        on_gpu = features.device.type == "cuda"
        done = torch.cuda.current_stream(features.device).record_event() if on_gpu else None
        return cls(codec, features, coded, stored, measured, finite, done)

    def ready(self) -> bool:
        return self._done is None or self._done.query()

    @torch.inference_mode()
    def finish(self) -> CodedBatch:
        """Wait for the device."""
        if self._done is not None:
            self._done.synchronize()
        measured = self._measured
        if not measured.isfinite().all():
            decoded = decode(self._coded, self.codec)
            measured = coding_errors(self.features.double(), decoded.double()).cpu()
        errors = tuple(as_coding_error(row) for row in measured)
        return CodedBatch(self.codec, self.features, self._stored.numpy(), errors, tuple(self._finite.tolist()))


def _to_host(part: Tensor) -> Tensor:
    """Itself, or a copy that is there once the device has come so far."""
    if part.device.type != "cuda":
        return part
    return torch.empty_like(part, device="cpu", pin_memory=True).copy_(part, non_blocking=True)


@dataclass
class ColumnCoding:
    """Relative L2 errors of the rows of one column that a run coded."""

    max_relative_error: float | None
    """What a row may have."""
    shards_judged: int = 0
    """Shards whose rows were held against it."""
    rows: int = 0
    sum_relative_error: float = 0.0
    worst_relative_error: float = 0.0
    worst_view: int | None = None
    shards_over: list[int] = field(default_factory=list)
    """Shards after the first in which a row has more than it may."""

    def take_in(self, other: ColumnCoding) -> None:
        """Add another process's rows."""
        if other.worst_relative_error > self.worst_relative_error or self.worst_view is None:
            self.worst_relative_error, self.worst_view = other.worst_relative_error, other.worst_view
        self.shards_judged += other.shards_judged
        self.rows += other.rows
        self.sum_relative_error += other.sum_relative_error
        self.shards_over = sorted({*self.shards_over, *other.shards_over})

    def to_json(self) -> dict[str, Any]:
        return {
            "rows": self.rows,
            "mean_relative_error": self.sum_relative_error / self.rows if self.rows else 0.0,
            "worst_relative_error": self.worst_relative_error,
            "worst_view": self.worst_view,
            "max_relative_error": self.max_relative_error,
            "shards_over": self.shards_over,
        }


class CodingWatch:
    """Sees every row that a run codes for one column, and refuses a first shard that misses the bound."""

    def __init__(self, spec: ColumnSpec, coding: ColumnCoding) -> None:
        self._spec, self._coding = spec, coding
        self._worst: tuple[RowRecord, Tensor] | None = None

    def see(self, row: RowRecord, features: Tensor | None) -> None:
        """Take in a row; its features are needed where it may be refused."""
        coding = self._coding
        coding.rows += 1
        coding.sum_relative_error += row.relative_error
        if coding.worst_view is None or row.relative_error > coding.worst_relative_error:
            coding.worst_relative_error, coding.worst_view = row.relative_error, row.view_id
        if (
            coding.max_relative_error is not None
            and features is not None
            and (self._worst is None or row.relative_error > self._worst[0].relative_error)
        ):
            self._worst = row, features

    def close_shard(self, shard: int) -> None:
        """Judge the rows that were seen since the last call, before they are committed.

        Raises:
            CodecError: the first shard of this run holds a row that coding cost too much.
        """
        worst, self._worst = self._worst, None
        bound = self._coding.max_relative_error
        if worst is None or bound is None:
            return
        self._coding.shards_judged += 1
        if worst[0].relative_error > bound:
            if self._coding.shards_judged == 1:
                raise CodecError(self._refusal(shard, *worst, bound))
            self._coding.shards_over.append(shard)

    def _refusal(self, shard: int, row: RowRecord, features: Tensor, bound: float) -> str:
        spec = self._spec
        better = ", ".join(_better(spec, features.cpu().numpy(), bound))
        return (
            f"column {spec.name}, shard {shard}: codec {spec.codec} costs view {row.view_id} a relative error of "
            f"{row.relative_error:.3g}, more than the {bound:g} that --max-relative-error allows. Nothing of the shard "
            f"was committed. On this view {better}. Plan a store with one of these (--set "
            "store.codec=NAME), or allow a larger error."
        )


def _better(spec: ColumnSpec, features: NDArray[np.float32], bound: float) -> list[str]:
    """Codecs that keep to the bound on these features, with what they cost and take; float32 always does."""
    found = []
    for name in CODECS:
        codec = get_codec(name)
        try:
            error = measure_error(features, codec.decode(codec.encode(features))).relative_error
        except CodecError:
            continue  # its range is too small
        if error <= bound:
            found.append(f"{name} costs {error:.3g} ({codec.nbytes(spec.tokens, spec.width) / 1e6:.2f} MB a row)")
    return found
