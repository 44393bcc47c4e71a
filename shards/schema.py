"""What a store says about itself: header, column, row and commit record. Frozen, versioned, canonical JSON.

Every JSON document of a store is canonical (sorted keys, no blanks, ASCII, one trailing newline) and carries `digest`,
the sha256 of the canonical JSON of its other fields. Reading compares both, so any changed byte is found.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Final, NamedTuple

from mvd_offline.shards.errors import CorruptionError, IdentityError, StoreError

SCHEMA_VERSION: Final = 2

STATUSES: Final = ("ok", "unreadable", "too_short", "timeout", "missing")
"""What can become of a row; only `ok` has a payload."""

COLUMN_NAME: Final = re.compile(r"[a-z][a-z0-9_]{0,62}")
CLIPS: Final = "clips"
"""The column of a store's baked clips: its tokens are frames, and its width is their side in pixels. All other columns
hold targets."""
QUARANTINE: Final = "quarantine"
"""Folder of a store for what `verify --repair` put aside; no part of the store."""
RESERVED_NAMES: Final = frozenset({"commits", "index", "plan", "store", "local", QUARANTINE})


def canonical_json(value: Any) -> bytes:
    """The one way a JSON value is written: its bytes can be hashed and compared."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return text.encode("ascii") + b"\n"


def sha256_of(value: Any) -> str:
    """sha256 (hex) of a value's canonical JSON."""
    return hashlib.sha256(canonical_json(value)).hexdigest()


def seal_document(document: Mapping[str, Any]) -> bytes:
    """Canonical bytes of `document` with its `digest` added."""
    return canonical_json({**document, "digest": sha256_of(dict(document))})


def open_document(data: bytes, name: str, repair: str = "") -> dict[str, Any]:
    """The document in `data`, without its digest.

    Args:
        name, repair: for the error: which file it is, and what to do when it is damaged.

    Raises:
        CorruptionError: the bytes are not canonical JSON, or their digest does not hold.
        StoreError: another schema version.
    """
    try:
        document = json.loads(data.decode("ascii"))
        intact = isinstance(document, dict) and canonical_json(document) == data
        digest = document.pop("digest", None) if intact else None
    except (ValueError, RecursionError):
        intact, digest = False, None
    if not intact or digest != sha256_of(document):
        raise CorruptionError(
            f"{name}: the file was damaged or edited: its content does not match the digest it carries. {repair}"
        )
    version = document.get("schema_version")
    if version != SCHEMA_VERSION:
        raise StoreError(
            f"{name}: schema version {version!r}; this release reads version {SCHEMA_VERSION}. "
            "Install the release of mvd-offline that wrote the store."
        )
    return document


class _Nothing:
    """Stands for the value of a field that one side does not have."""

    def __repr__(self) -> str:
        return "nothing"


NOTHING: Final = _Nothing()


class Difference(NamedTuple):
    """A field that differs between two identities, by its dotted path."""

    field: str
    ours: Any
    theirs: Any


def all_differences(ours: Any, theirs: Any, path: str = "") -> list[Difference]:
    """Every field that differs between two JSON values, by path; lists are compared whole."""
    if not (isinstance(ours, Mapping) and isinstance(theirs, Mapping)):
        return [] if ours == theirs else [Difference(path, ours, theirs)]
    return [
        difference
        for key in sorted({*ours, *theirs})
        for difference in all_differences(
            ours.get(key, NOTHING), theirs.get(key, NOTHING), f"{path}.{key}" if path else str(key)
        )
    ]


def list_differences(differences: Iterable[Difference], ours: str, theirs: str) -> str:
    """A line for each difference, with the names of both sides: `  view.stride: recipe has 4, store has 2`."""
    return "".join(f"\n  {field}: {ours} has {one!r}, {theirs} has {other!r}" for field, one, other in differences)


def _plain(value: Any) -> Any:
    """`value` as JSON gives it back (tuples become lists), so that what is compared is what is stored."""
    return json.loads(canonical_json(value))


def _read(cls: type[Any], data: Any, name: str) -> dict[str, Any]:
    """Fields of dataclass `cls` from a parsed document; unknown or missing ones are corruption."""
    expected = {f.name for f in dataclasses.fields(cls)}
    if not isinstance(data, dict) or set(data) != expected:
        found = sorted(data) if isinstance(data, dict) else data
        raise CorruptionError(f"{name}: expected the fields {sorted(expected)}, found {found}")
    return data


@dataclass(frozen=True)
class ColumnSpec:
    """One column: the targets of one teacher, N tokens of D channels a row."""

    name: str
    tokens: int
    width: int
    codec: str
    container: str
    source: Mapping[str, Any]
    """The teacher's identity; opaque here: architecture, weights_sha256, layer, precision, normalisation, ..."""
    max_relative_error: float | None = None
    """What coding may cost a row at most (relative L2); checked on the first shard that a run writes."""

    def __post_init__(self) -> None:
        if not COLUMN_NAME.fullmatch(self.name) or self.name in RESERVED_NAMES:
            raise IdentityError(
                f"column name {self.name!r}: use a lower-case letter, then letters, digits or underscores "
                f"(at most 63), and none of {sorted(RESERVED_NAMES)}"
            )
        if self.tokens < 1 or self.width < 1:
            raise IdentityError(f"column {self.name}: tokens and width must be positive: {self.tokens}, {self.width}")
        if self.max_relative_error is not None and not self.max_relative_error > 0:
            raise IdentityError(f"column {self.name}: max_relative_error must be positive: {self.max_relative_error}")
        object.__setattr__(self, "source", _plain(dict(self.source)))

    @cached_property
    def column_id(self) -> str:
        """sha256 of the column's canonical JSON."""
        return sha256_of(self.to_json())

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, data: Any, name: str = "column") -> ColumnSpec:
        return cls(**_read(cls, data, name))


@dataclass(frozen=True)
class StoreHeader:
    """A store's identity, and its columns."""

    plan_sha256: str
    rows: int
    """Height of the table, with the gaps at the ends of groups."""
    rows_per_shard: int
    batch_rows: int
    """Views of one teacher batch: it decides the last bits of the targets."""
    grid: tuple[int, int, int]
    """Tokens along t, h, w."""
    view: Mapping[str, Any]
    """How views were drawn; opaque here."""
    columns: Mapping[str, ColumnSpec] = field(default_factory=dict)
    schema_version: int = SCHEMA_VERSION

    def __post_init__(self) -> None:
        if self.rows < 1 or self.rows_per_shard < 1 or self.batch_rows < 1:
            raise IdentityError(
                "rows, rows_per_shard and batch_rows must be positive: "
                f"{self.rows}, {self.rows_per_shard}, {self.batch_rows}"
            )
        wrong = [name for name, spec in self.columns.items() if name != spec.name]
        if wrong:
            raise IdentityError(f"columns {wrong} are filed under names that are not their own")
        object.__setattr__(self, "grid", tuple(self.grid))
        object.__setattr__(self, "view", _plain(dict(self.view)))
        object.__setattr__(self, "columns", dict(sorted(self.columns.items())))

    @property
    def identity(self) -> dict[str, Any]:
        """Everything except the columns: what all teachers of a store share."""
        return {
            "schema_version": self.schema_version,
            "plan_sha256": self.plan_sha256,
            "rows": self.rows,
            "rows_per_shard": self.rows_per_shard,
            "batch_rows": self.batch_rows,
            "grid": list(self.grid),
            "view": dict(self.view),
        }

    @cached_property
    def store_id(self) -> str:
        """sha256 of the identity: a column added later keeps it, and so the order of training."""
        return sha256_of(self.identity)

    @property
    def shard_count(self) -> int:
        return -(-self.rows // self.rows_per_shard)

    def to_bytes(self) -> bytes:
        """The content of `store.json`."""
        columns = {name: spec.to_json() for name, spec in self.columns.items()}
        return seal_document({**self.identity, "store_id": self.store_id, "columns": columns})

    @classmethod
    def from_bytes(cls, data: bytes, name: str = "store.json", repair: str = "") -> StoreHeader:
        document = open_document(data, name, repair)
        store_id = document.pop("store_id", None)
        fields = _read(cls, document, name)
        columns = {key: ColumnSpec.from_json(value, name) for key, value in fields["columns"].items()}
        header = cls(**{**fields, "columns": columns})
        if header.store_id != store_id:
            raise CorruptionError(f"{name}: store_id is {store_id}, but its fields give {header.store_id}")
        return header


@dataclass(frozen=True)
class RowRecord:
    """The ledger's line for one view in one column."""

    view_id: int
    status: str
    """`ok`, or why there is no payload."""
    detail: str = ""
    """The reason in words; empty when ok."""
    offset: int = 0
    """First byte of the payload in the shard file."""
    length: int = 0
    """Bytes of the payload."""
    crc32c: int = 0
    pixels: str = ""
    """xxh3 (64 bit, hex) of the rendered pixels that the teacher saw; empty when not ok."""
    decoder: str = ""
    """Decoder and version that read the video; empty when not ok."""
    relative_error: float = 0.0
    """What coding cost (see `codecs.CodingError`); this and the next three are 0 when not ok."""
    cosine_min: float = 0.0
    cosine_mean: float = 0.0
    max_abs_error: float = 0.0

    def __post_init__(self) -> None:
        if self.status not in STATUSES:
            raise IdentityError(f"row {self.view_id}: status {self.status!r} is none of {', '.join(STATUSES)}")

    def to_json(self) -> dict[str, Any]:
        return dict(vars(self))

    @classmethod
    def from_json(cls, data: Any, name: str = "row") -> RowRecord:
        return cls(**_read(cls, data, name))


@dataclass(frozen=True)
class CommitRecord:
    """One shard of one column is done: this record, published last, says so."""

    store_id: str
    column: str
    column_id: str
    shard: int
    file: str
    """Name of the shard file inside the column's folder."""
    size: int
    """Bytes of the shard file."""
    sha256: str
    """Of the whole shard file."""
    producer: Mapping[str, str]
    """Who computed the targets: software and device, with versions. What decides their last bits, and no more."""
    rows: tuple[RowRecord, ...]
    """Every view of the shard, by ascending view_id."""
    schema_version: int = SCHEMA_VERSION

    def to_json(self) -> dict[str, Any]:
        return {**vars(self), "rows": [row.to_json() for row in self.rows]}

    def to_bytes(self) -> bytes:
        """The content of `commits/<column>/<shard>.json`."""
        return seal_document(self.to_json())

    @classmethod
    def from_bytes(cls, data: bytes, name: str = "commit record", repair: str = "") -> CommitRecord:
        fields = _read(cls, open_document(data, name, repair), name)
        rows = tuple(RowRecord.from_json(row, name) for row in fields["rows"])
        return cls(**{**fields, "rows": rows})


@dataclass(frozen=True)
class SealRecord:
    """The index is done: `commits/index.json`, published after `index.parquet`."""

    store_id: str
    columns: Mapping[str, str]
    """Name and column_id of every column that the index covers."""
    size: int
    sha256: str
    schema_version: int = SCHEMA_VERSION

    def to_bytes(self) -> bytes:
        return seal_document(dict(vars(self)))

    @classmethod
    def from_bytes(cls, data: bytes, name: str = "commits/index.json", repair: str = "") -> SealRecord:
        return cls(**_read(cls, open_document(data, name, repair), name))
