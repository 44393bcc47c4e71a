"""The logits of every view as Parquet: what ensembles and later analyses read."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from mvd_offline.errors import UsageError
from mvd_offline.evaluation.scoring import Predictions, mean_probabilities
from mvd_offline.evaluation.videos import Unreadable
from mvd_offline.shards.atomic import temporary_file

LOGITS_FILE = "logits.parquet"
PREDICTIONS_FILE = "predictions.parquet"

_VERSION = 1
_KEY = b"mvd_offline.logits"
_SCHEMA = pa.schema([
    pa.field("video_id", pa.string(), nullable=False),
    pa.field("label", pa.int32(), nullable=False),
    pa.field("clip", pa.int32()),
    pa.field("crop", pa.int32()),
    pa.field("logits", pa.list_(pa.float32())),
])  # fmt: skip


@dataclass(frozen=True)
class ViewLogits:
    """What a classifier said of every view of every video.

    A video that counts as a wrong answer, because it could not be read, has one row in the file, without clip, crop
    and logits.

    Attributes:
        labels: int64 (V,).
        logits: float32 (V, segments, crops, classes).
        names: of the classes; empty where nobody named them.
    """

    video_ids: tuple[str, ...]
    labels: NDArray[np.int64]
    logits: NDArray[np.float32]
    wrong: tuple[Unreadable, ...] = ()
    names: tuple[str, ...] = ()
    settings: dict[str, Any] = field(default_factory=dict)

    def predictions(self) -> Predictions:
        """The mean softmax of each video's views."""
        views = self.logits.reshape(len(self.logits), -1, self.logits.shape[-1])
        return Predictions(self.video_ids, self.labels, mean_probabilities(views), self.wrong, self.names)

    def write(self, path: Path) -> None:
        """A row a view, in the order of videos, clips and crops; whole or not at all."""
        videos, segments, crops, classes = self.logits.shape
        views, unread = segments * crops, len(self.wrong)
        nothing = [None] * unread
        offsets = np.minimum(np.arange(videos * views + unread + 1), videos * views) * classes
        logits = pa.ListArray.from_arrays(
            pa.array(offsets, pa.int32()),
            pa.array(self.logits.reshape(-1)),
            mask=pa.array(np.arange(videos * views + unread) >= videos * views),
        )
        columns = {
            "video_id": [*np.repeat(np.array(self.video_ids, object), views), *(w.video_id for w in self.wrong)],
            "label": [*np.repeat(self.labels, views), *(w.label for w in self.wrong)],
            "clip": [*np.tile(np.repeat(np.arange(segments), crops), videos), *nothing],
            "crop": [*np.tile(np.arange(crops), videos * segments), *nothing],
        }
        facts = {
            "version": _VERSION,
            "classes": list(self.names),
            "reasons": {w.video_id: w.reason for w in self.wrong},
            "settings": self.settings,
        }
        schema = _SCHEMA.with_metadata({_KEY: json.dumps(facts, sort_keys=True).encode()})
        arrays = [pa.array(values, schema.field(name).type) for name, values in columns.items()]
        write_table(pa.Table.from_arrays([*arrays, logits], schema=schema), path)

    @classmethod
    def read(cls, path: Path) -> ViewLogits:
        """What `write` wrote.

        Raises:
            UsageError: no such file, or not one of these.
        """
        table, facts = _read(path)
        whole = table.filter(pc.is_valid(table["logits"])).combine_chunks()
        unread = table.filter(pc.is_null(table["logits"])).to_pylist()
        if not whole.num_rows:
            raise UsageError(f"{path}: it holds the logits of no video.")
        clips, crops = (1 + pc.max(whole[name]).as_py() for name in ("clip", "crop"))
        flat = whole["logits"].combine_chunks().flatten().to_numpy()
        return cls(
            video_ids=tuple(whole["video_id"].take(np.arange(0, whole.num_rows, clips * crops)).to_pylist()),
            labels=whole["label"].to_numpy()[:: clips * crops].astype(np.int64),
            logits=flat.reshape(-1, clips, crops, len(flat) // whole.num_rows),
            wrong=tuple(Unreadable(r["video_id"], r["label"], facts["reasons"][r["video_id"]]) for r in unread),
            names=tuple(facts["classes"]),
            settings=facts["settings"],
        )


def write_predictions(predictions: Predictions, path: Path) -> None:
    """A row a video: `video_id`, `label`, `answer`, and `probabilities` (float64), the mean over its views."""
    videos, classes = predictions.probabilities.shape
    offsets = pa.array(np.arange(videos + 1) * classes, pa.int32())
    table = pa.table({
        "video_id": pa.array(predictions.video_ids, pa.string()),
        "label": pa.array(predictions.labels, pa.int32()),
        "answer": pa.array(predictions.answers(), pa.int32()),
        "probabilities": pa.ListArray.from_arrays(offsets, pa.array(predictions.probabilities.reshape(-1))),
    })  # fmt: skip
    write_table(table, path)


def write_table(table: pa.Table, path: Path) -> None:
    """Write a Parquet file, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with temporary_file(path) as temporary:
        pq.write_table(table, temporary.stream, compression="zstd")
        temporary.publish()


def _read(path: Path) -> tuple[pa.Table, dict[str, Any]]:
    if not path.is_file():
        raise UsageError(f"{path}: no such file; `mvd-offline evaluate` writes {LOGITS_FILE} beside its result.")
    try:
        table = pq.ParquetFile(path).read(use_threads=False)
    except pa.ArrowInvalid as error:
        raise UsageError(f"{path}: the logits of a test are a Parquet file, and this is none: {error}") from None
    facts = json.loads((table.schema.metadata or {}).get(_KEY, b"{}"))
    if facts.get("version") != _VERSION:
        raise UsageError(
            f"{path}: not the logits of a test (version {_VERSION}; found {facts.get('version')}); "
            f"`mvd-offline evaluate` writes {LOGITS_FILE} beside its result."
        )
    return table, facts
