"""What each codec makes of a store's features: bytes, error, speed. A rate-distortion curve, measured on real rows.

What codec `klt` learns it learns of one half of the rows, and all codecs are measured on the other. With a recipe, the
loss that the coded features lead to is measured too.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mvd_offline.analysis.target_effects import LossEffect, StoreLosses, as_targets
from mvd_offline.bench.measure import Spread, machine
from mvd_offline.errors import UsageError
from mvd_offline.extraction.learning import MOST_TOKENS
from mvd_offline.shards.codecnames import codec_family
from mvd_offline.shards.codecs import CODECS, Codec, CodingError, get_codec, measure_error
from mvd_offline.shards.klt import learn, remember
from mvd_offline.shards.statistics import spread_rows
from mvd_offline.shards.store import Store, open_store

KLT_ERRORS = (0.02, 0.04, 0.08, 0.12, 0.16)


@dataclass(frozen=True)
class CodecPoint:
    """One codec on one column; times are of one row in one process."""

    column: str
    codec: str
    row_bytes: float
    smaller_than_float16: float
    """How many times."""
    relative_error: Spread
    """L2, over the rows."""
    cosine_mean: float
    encode_ms: float
    """From float32 features to the payload."""
    unpack_ms: float
    """From the payload to the array that goes to the device; 0 where it is the payload itself."""
    decode_ms: float
    """From that array to float32 features, here by numpy."""
    effect: LossEffect | None = None
    """On the column's term of the loss; None without a recipe."""


@dataclass(frozen=True)
class CodecTimes:
    rows: int
    """Of each column: on which the codecs are measured."""
    learnt_from: int
    points: tuple[CodecPoint, ...]
    machine: dict[str, Any]
    student: str | None = None
    """Whose loss is measured, in words."""
    loss_clips: int = 0
    """Of each column: on which it is measured."""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def compare_codecs(
    store_dir: Path,
    *,
    columns: Sequence[str] | None,
    rows: int,
    errors: Sequence[float] = KLT_ERRORS,
    losses: StoreLosses | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> CodecTimes:
    """Code rows of a store with every codec.

    Args:
        columns: when None, all of its teachers', or those that the student of `losses` learns from.
        rows: of each column, evenly spread; half of them are measured.
        errors: relative errors that `klt` is asked for.
        losses: measures what the codecs do to the loss.

    Raises:
        UsageError: a column is not stored in float32 or float16, so that it has lost too much already; or too few rows.
        What `StoreLosses.compare` raises.
    """
    if columns is None and losses is not None:
        columns = losses.columns
    store = open_store(store_dir, columns=columns)
    points: list[CodecPoint] = []
    learnt_from = measured = loss_clips = 0
    names = store.checked_columns(columns or store.target_columns)
    if not names:
        raise UsageError(f"{store_dir} has no teacher's column, so that there are no features to code.")
    for column in names:
        _require_exact(store, column)
        ids = spread_rows(store.ok_rows([column]), rows)
        if len(ids) < 2:
            raise UsageError(f"{store_dir} has {len(ids)} rows of column {column}; at least 2 are needed.")
        known, new = (
            [row.astype(np.float32) for row in store.read(part, [column])[column]] for part in (ids[::2], ids[1::2])
        )
        learnt_from, measured = len(known), len(new)
        effect = None
        if losses is not None:
            chosen = spread_rows(np.arange(measured), losses.clips)
            effect, loss_clips = (
                _effects(losses, column, ids[1::2][chosen], [new[place] for place in chosen]),
                len(chosen),
            )
        for codec in _codecs(known, errors):
            say(f"{column}: {codec_family(codec.name)}")
            points.append(_point(column, codec, new, effect(codec) if effect else None))
    return CodecTimes(measured, learnt_from, tuple(points), machine(), losses.student if losses else None, loss_clips)


def _effects(
    losses: StoreLosses, column: str, view_ids: NDArray[np.int64], rows: Sequence[NDArray[np.float32]]
) -> Callable[[Codec], LossEffect]:
    """What a codec does to the column's term of the loss on these rows."""
    comparison = losses.compare(column, view_ids.tolist(), as_targets(rows))

    def effect(codec: Codec) -> LossEffect:
        coded = [codec.decode(codec.encode(row)).astype(np.float32) for row in rows]
        return comparison.effect(as_targets(coded))

    return effect


def _require_exact(store: Store, column: str) -> None:
    codec = store.header.columns[column].codec
    if codec not in ("float32", "float16"):
        raise UsageError(
            f"column {column} of {store.root} is stored as {codec}, which has lost more than what is to be measured: "
            "give a store in float32 or float16."
        )


def _codecs(known: Sequence[NDArray[np.float32]], errors: Iterable[float]) -> Iterable[Codec]:
    yield from CODECS.values()
    tokens = np.concatenate(list(known))
    sample = tokens[spread_rows(np.arange(len(tokens)), MOST_TOKENS)]
    for error in errors:
        yield get_codec(remember(learn(sample, error)))


def _point(column: str, codec: Codec, rows: Sequence[NDArray[np.float32]], effect: LossEffect | None) -> CodecPoint:
    sizes: list[int] = []
    lost: list[CodingError] = []
    times: list[tuple[float, float, float]] = []
    for row in rows:
        began = time.perf_counter()
        coded = codec.encode(row)
        payload = codec.packing.pack(coded) if codec.packing else coded.tobytes()
        encoded = time.perf_counter()
        if codec.packing:
            codec.packing.unpack(memoryview(payload), coded)
        unpacked = time.perf_counter()
        decoded = codec.decode(coded).astype(np.float32)
        times.append((encoded - began, unpacked - encoded, time.perf_counter() - unpacked))
        sizes.append(len(payload))
        lost.append(measure_error(row, decoded))
    encode, unpack, decode = (1000 * float(np.median(values)) for values in zip(*times, strict=True))
    return CodecPoint(
        column=column,
        codec=codec_family(codec.name),
        row_bytes=float(np.mean(sizes)),
        smaller_than_float16=2 * rows[0].size / float(np.mean(sizes)),
        relative_error=Spread.of([error.relative_error for error in lost]),
        cosine_mean=float(np.mean([error.cosine_mean for error in lost])),
        encode_ms=encode,
        unpack_ms=unpack if codec.packing else 0.0,
        decode_ms=decode,
        effect=effect,
    )
