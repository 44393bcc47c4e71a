"""The same rows in every form that the reading benchmark compares: stores in both containers, and peers' datasets."""

from __future__ import annotations

import dataclasses
import hashlib
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import google_crc32c
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from mvd_offline.shards.codecs import get_codec, measure_error
from mvd_offline.shards.containers import CONTAINERS
from mvd_offline.shards.schema import ColumnSpec, RowRecord, StoreHeader
from mvd_offline.shards.store import Store, create_store

SHARDS: Final = 8
_DISTINCT: Final = 16
_PEER_SHARD_BYTES: Final = "100mb"


@dataclass(frozen=True)
class Samples:
    """`rows` arrays (tokens, width) in one codec; row i is `distinct[i % len(distinct)]`."""

    folder: Path
    codec: str
    rows: int
    distinct: tuple[NDArray[Any], ...]

    @classmethod
    def draw(cls, folder: Path, codec: str, *, rows: int, tokens: int, width: int) -> Samples:
        """Normal features with a few channels that are 30 times the rest, coded."""
        generator = np.random.default_rng(0)
        scale = np.where(np.arange(width) % 128 == 7, 30, 1).astype(np.float32)
        features = (generator.standard_normal((tokens, width)).astype(np.float32) * scale for _ in range(_DISTINCT))
        return cls(folder, codec, rows, tuple(get_codec(codec).encode(row) for row in features))

    def row(self, number: int) -> NDArray[Any]:
        return self.distinct[number % len(self.distinct)]

    @property
    def rows_per_shard(self) -> int:
        return -(-self.rows // SHARDS)

    @property
    def row_bytes(self) -> int:
        return self.distinct[0].nbytes


def make_store(samples: Samples, container: str, *, tokens: int, width: int) -> Store:
    """A sealed store with one column, named after its codec."""
    views = np.arange(samples.rows, dtype=np.int64)
    sink = io.BytesIO()
    pq.write_table(pa.table({"view_id": views, "shard": (views // samples.rows_per_shard).astype(np.int32)}), sink)
    column = ColumnSpec(samples.codec, tokens, width, samples.codec, CONTAINERS[container].name, source={})
    header = StoreHeader(
        plan_sha256=hashlib.sha256(sink.getvalue()).hexdigest(),
        rows=samples.rows,
        rows_per_shard=samples.rows_per_shard,
        batch_rows=1,
        grid=(tokens, 1, 1),
        view={},
        columns={column.name: column},
    )
    store = create_store(samples.folder / f"{container}-{samples.codec}", header, sink.getvalue())
    records = [_record(coded, samples.codec) for coded in samples.distinct]
    for shard in range(store.shard_count):
        with store.write_shard(column.name, shard, producer={}) as writer:
            for view in store.shard_view_ids(shard).tolist():
                record = records[view % len(records)]
                writer.keep(
                    dataclasses.replace(record, view_id=view), samples.row(view).reshape(-1).view(np.uint8).data
                )
    store.seal()
    return store


def _record(coded: NDArray[Any], codec: str) -> RowRecord:
    payload = coded.reshape(-1).view(np.uint8)
    decoded = get_codec(codec).decode(coded).astype(np.float32)
    return RowRecord(
        view_id=0,
        status="ok",
        length=payload.nbytes,
        crc32c=google_crc32c.value(payload),
        pixels="0" * 16,
        decoder="none",
        **vars(measure_error(decoded, decoded)),
    )


def make_streaming(samples: Samples) -> Path:
    """A mosaicml-streaming dataset of arrays; its shards carry no checksums unless one asks for them."""
    from streaming import MDSWriter

    folder = samples.folder / f"streaming-{samples.codec}"
    shape = ",".join(str(side) for side in samples.row(0).shape)
    with MDSWriter(
        out=str(folder),
        columns={"row": f"ndarray:{samples.row(0).dtype}:{shape}"},
        size_limit=_PEER_SHARD_BYTES,
        progress_bar=False,
    ) as writer:
        for number in range(samples.rows):
            writer.write({"row": samples.row(number)})
    return folder


def make_litdata(samples: Samples) -> Path:
    """A litdata dataset of arrays, without checksums: it has none."""
    import litdata

    folder = samples.folder / f"litdata-{samples.codec}"
    litdata.optimize(
        samples.row,
        list(range(samples.rows)),
        str(folder),
        chunk_bytes=_PEER_SHARD_BYTES.upper(),
        num_workers=1,
        start_method="fork",
        verbose=False,
    )
    return folder
