"""The ledger of one column of a store as arrays, from `index.parquet` or from commit records."""

from __future__ import annotations

from binascii import unhexlify
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from mvd_offline.shards.errors import CorruptionError, MissingRowError
from mvd_offline.shards.indexfile import CODING_MEASURES, IndexPart
from mvd_offline.shards.schema import STATUSES, CommitRecord, RowRecord

if TYPE_CHECKING:
    import pyarrow as pa

_N = TypeVar("_N", bound=np.generic)

_Placed: TypeAlias = list[tuple[slice | NDArray[np.int64], IndexPart]]

NO_ROW: Final = 255
"""Status code of a view_id that has no record."""


class SeenPixels(NamedTuple):
    """What a teacher saw of a view."""

    pixels: str
    """xxh3 (hex) of the rendered pixels; empty where the view has no target."""
    decoder: str


class ColumnIndex:
    """Where each row of one column is: arrays over the whole height of the table, indexed by view_id.

    Each array is read when it is first asked for. Threads and processes may share an index for reading.
    """

    def __init__(self, root: Path, column: str, rows: int, parts: Sequence[IndexPart]) -> None:
        """
        Args:
            root: of the store; for what errors say.
            rows: height of the table.
            parts: the column's rows.

        Raises:
            CorruptionError: they are no rows of the table.
        """
        self.root, self.column, self._rows = root, column, rows
        self._parts: _Placed = [(part.places(), part) for part in parts]
        self.coding: Mapping[str, NDArray[np.float64]] = _Measures(self._parts, rows)
        """What coding cost each row, by measure: see `codecs.CodingError`; 0 where the row is not ok."""
        for places, _ in self._parts:
            _check_places(places, column, rows)

    def __getstate__(self) -> dict[str, Any]:
        """All of it, and no open file."""
        self.load()
        return self.__dict__

    def load(self) -> ColumnIndex:
        """Read every array now; returns the index itself."""
        if self._parts:
            self.load_for_reading()
            self.__dict__["details"] = self.details
            self.coding, self._parts = dict(self.coding), []
        return self

    def load_for_reading(self) -> None:
        """Read the arrays that reading rows, and comparing their pixels, takes.

        For who forks processes that read: they share what is there, and would each read it by itself otherwise.
        """
        for name in ("status", "offset", "length", "crc32c", "pixels", "decoder"):
            getattr(self, name)

    @cached_property
    def status(self) -> NDArray[np.uint8]:
        """Position in STATUSES, or NO_ROW."""
        array = np.full(self._rows, NO_ROW, np.uint8)
        for places, part in self._parts:
            codes, names = part.codes("status")
            array[places] = np.array([STATUSES.index(name) for name in names], np.uint8)[codes]
        return array

    @cached_property
    def offset(self) -> NDArray[np.int64]:
        """First byte of the payload in the shard file."""
        return self._numbers("offset", np.int64)

    @cached_property
    def length(self) -> NDArray[np.int64]:
        """Bytes of the payload."""
        return self._numbers("length", np.int64)

    @cached_property
    def crc32c(self) -> NDArray[np.uint32]:
        """Of the payload."""
        return self._numbers("crc32c", np.uint32)

    @cached_property
    def pixels(self) -> NDArray[np.uint64]:
        """xxh3 of the rendered pixels, where the row is ok."""
        array = np.zeros(self._rows, np.uint64)
        for places, part in self._parts:
            array[places] = _hash_values(part.read("pixels"))
        return array

    @property
    def decoder(self) -> NDArray[np.uint16]:
        """Position in `decoders`."""
        return self._decoded_by[0]

    @property
    def decoders(self) -> list[str]:
        """Who decoded rows, by name and version."""
        return self._decoded_by[1]

    @cached_property
    def _decoded_by(self) -> tuple[NDArray[np.uint16], list[str]]:
        array, known = np.zeros(self._rows, np.uint16), [""]
        for places, part in self._parts:
            codes, names = part.codes("decoder")
            known += [name for name in names if name not in known]
            array[places] = np.array([known.index(name) for name in names], np.uint16)[codes]
        return array, known

    @cached_property
    def details(self) -> dict[int, str]:
        """Reason by view_id, for rows that are not ok."""
        found: dict[int, str] = {}
        for places, part in self._parts:
            codes, texts = part.codes("detail")
            if any(texts):
                ids = np.arange(self._rows)[places]
                every = np.broadcast_to(codes, ids.shape)
                said = np.array([bool(text) for text in texts])[every]
                found.update(zip(ids[said].tolist(), (texts[code] for code in every[said]), strict=True))
        return found

    @property
    def ok(self) -> NDArray[np.bool_]:
        """Which view_ids have a payload."""
        return self.status == 0

    @property
    def view_ids(self) -> NDArray[np.int64]:
        """Views that have a record, ascending."""
        return np.flatnonzero(self.status != NO_ROW).astype(np.int64)

    def __contains__(self, view_id: int) -> bool:
        """Whether the view has a record."""
        return 0 <= view_id < len(self.status) and bool(self.status[view_id] != NO_ROW)

    def counts(self) -> dict[str, int]:
        """Rows by status."""
        found = np.bincount(self.status, minlength=len(STATUSES)).tolist()
        return {name: found[code] for code, name in enumerate(STATUSES) if found[code]}

    def require_ok(self, view_ids: NDArray[np.int64]) -> None:
        """Raises MissingRowError for the first view that has no payload."""
        inside = (view_ids >= 0) & (view_ids < len(self.status))
        if inside.all() and not self.status[view_ids].any():
            return
        bad = ~inside
        bad[inside] = self.status[view_ids[inside]] != 0
        raise MissingRowError(self._explain(int(view_ids[bad][0]), int(bad.sum())))

    def row(self, view_id: int) -> RowRecord:
        """The record of one view; raises MissingRowError when there is none."""
        pixels, decoder = self.seen_pixels(view_id)
        return RowRecord(
            view_id=view_id,
            status=STATUSES[self.status[view_id]],
            detail=self.details.get(view_id, ""),
            offset=int(self.offset[view_id]),
            length=int(self.length[view_id]),
            crc32c=int(self.crc32c[view_id]),
            pixels=pixels,
            decoder=decoder,
            **{name: float(values[view_id]) for name, values in self.coding.items()},
        )

    def seen_pixels(self, view_id: int) -> SeenPixels:
        """What the teacher saw of a view; raises MissingRowError when there is no record."""
        if view_id not in self:
            raise MissingRowError(self._explain(view_id, 1))
        pixels = f"{int(self.pixels[view_id]):016x}" if self.status[view_id] == 0 else ""
        return SeenPixels(pixels, self.decoders[self.decoder[view_id]])

    def has_records(self, view_ids: NDArray[np.int64]) -> bool:
        """Whether each of these views has a record."""
        inside = (view_ids >= 0) & (view_ids < len(self.status))
        return bool(inside.all() and (self.status[view_ids] != NO_ROW).all())

    def take_in(self, record: CommitRecord) -> None:
        """Add the rows of a commit record, in place; other threads may read meanwhile."""
        self.load()
        for row in record.rows:
            place = row.view_id
            if row.decoder not in self.decoders:
                self.decoders.append(row.decoder)
            self.decoder[place] = self.decoders.index(row.decoder)
            self.offset[place], self.length[place], self.crc32c[place] = row.offset, row.length, row.crc32c
            self.pixels[place] = int(row.pixels or "0", 16)
            for measure, values in self.coding.items():
                values[place] = getattr(row, measure)
            if row.detail:
                self.details[place] = row.detail
            # Last: it says that the rest is there.
            self.status[place] = STATUSES.index(row.status)

    def _numbers(self, name: str, dtype: type[_N]) -> NDArray[_N]:
        return _numbers(self._parts, self._rows, name, dtype)

    def _explain(self, view_id: int, count: int) -> str:
        others = f" (and {count - 1} more of the rows asked for)" if count > 1 else ""
        where = f"column {self.column}, row {view_id}{others}: "
        if not 0 <= view_id < len(self.status):
            return f"{where}no such row; the table has rows 0 to {len(self.status) - 1}."
        if self.status[view_id] == NO_ROW:
            return f"{where}no record: the plan has no such view, or its shard is not committed yet."
        status = STATUSES[self.status[view_id]]
        return (
            f"{where}there is no target, its status is {status}: {self.details.get(view_id, '')}. Ask "
            f"`Store.ok_rows()` for the rows that have one, or run `mvd-offline extract {self.root} --retry {status}` "
            "once its video can be read."
        )


class _Measures(Mapping[str, NDArray[np.float64]]):
    """The coding measures of an index, each read when it is first asked for."""

    def __init__(self, parts: _Placed, rows: int) -> None:
        self._parts, self._rows = parts, rows
        self._known: dict[str, NDArray[np.float64]] = {}

    def __getitem__(self, name: str) -> NDArray[np.float64]:
        if name not in CODING_MEASURES:
            raise KeyError(name)
        if name not in self._known:
            self._known[name] = _numbers(self._parts, self._rows, name, np.float64)
        return self._known[name]

    def __iter__(self) -> Iterator[str]:
        return iter(CODING_MEASURES)

    def __len__(self) -> int:
        return len(CODING_MEASURES)


def _numbers(parts: _Placed, rows: int, name: str, dtype: type[_N]) -> NDArray[_N]:
    array = np.zeros(rows, dtype)
    for places, part in parts:
        array[places] = part.numbers(name)
    return array


def _check_places(places: slice | NDArray[np.int64], column: str, rows: int) -> None:
    first, stop = (places.start, places.stop) if isinstance(places, slice) else (places.min(), places.max() + 1)
    if not (first >= 0 and stop <= rows):
        raise CorruptionError(f"the records of column {column} name rows outside 0 to {rows - 1}")


def _hash_values(texts: pa.StringArray) -> NDArray[np.uint64]:
    """Numbers of hashes of 16 hexadecimal digits each, 0 for an empty text: all at once, for millions of rows."""
    values = np.zeros(len(texts), np.uint64)
    if len(texts):
        _, offsets, letters = texts.buffers()
        ends = np.frombuffer(offsets, np.int32, len(texts) + 1, 4 * texts.offset)
        digits = memoryview(letters or b"")[ends[0] : ends[-1]]
        values[np.diff(ends) > 0] = np.frombuffer(unhexlify(digits), ">u8")
    return values
