"""The store of precomputed targets: arrays and bytes in, arrays and bytes out. Knows no models and no videos.

>>> from mvd_offline.shards import open_store
>>> open_store("store").read([0, 5])  # doctest: +SKIP
{'image': array(...), 'video': array(...)}
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mvd_offline.shards.errors import (
        CodecError,
        CommitError,
        CorruptionError,
        DiskFullError,
        IdentityError,
        MissingRowError,
        NotAStoreError,
        NotSealedError,
        StoreError,
    )
    from mvd_offline.shards.schema import ColumnSpec, CommitRecord, RowRecord, StoreHeader
    from mvd_offline.shards.store import ShardWriter, Store, create_store, open_store

__all__ = [
    "CodecError",
    "ColumnSpec",
    "CommitError",
    "CommitRecord",
    "CorruptionError",
    "DiskFullError",
    "IdentityError",
    "MissingRowError",
    "NotAStoreError",
    "NotSealedError",
    "RowRecord",
    "ShardWriter",
    "Store",
    "StoreError",
    "StoreHeader",
    "create_store",
    "open_store",
]


def __getattr__(name: str) -> Any:
    # Loaded on first use: the errors are needed everywhere, numpy is not.
    if name in __all__:
        for module in ("errors", "schema", "store"):
            found = getattr(importlib.import_module(f"{__name__}.{module}"), name, None)
            if found is not None:
                return found
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
