"""Every error that a user can meet is an `MvdError`: one paragraph, no traceback on the command line."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path


class MvdError(Exception):
    """Base of all errors that are meant for a user's eyes.

    The message is one clear paragraph: what is wrong, the value found, the values allowed, what to do.
    """


class StoreError(MvdError):
    """A store is missing, incomplete, or not what its identity says."""


class NotAStoreError(StoreError, FileNotFoundError):
    """The folder holds no store."""


class NotSealedError(StoreError):
    """A store whose shards are not all committed was opened for reading."""


class IdentityError(StoreError, ValueError):
    """A store differs from what a recipe, a plan or a record expects; the message names the field."""


class CorruptionError(StoreError):
    """Stored bytes do not match their recorded checksum."""


class MissingRowError(StoreError, LookupError):
    """A row has no payload (its status says why), or the store has no such row or column."""


class CodecError(StoreError, ValueError):
    """Features cannot be stored by the codec: wrong shape or dtype, not finite, or out of its range."""


class CommitError(StoreError, ValueError):
    """A shard cannot be committed: it is committed already, or its rows are incomplete or out of order."""


class ClaimError(StoreError):
    """Another run is at work on what was asked for."""


class DiskFullError(StoreError, OSError):
    """There is no room for the next shard; the message says how much is still to be written."""


def repair_shard(root: Path) -> str:
    """What to do about a damaged shard."""
    return (
        f"Run `mvd-offline shards verify {root} --level full --repair`, which puts what is damaged aside, then "
        f"`mvd-offline extract {root}`, which makes it again."
    )


def write_derived(root: Path) -> str:
    """What to do about a damaged file that follows from the commit records."""
    return f"Run `mvd-offline shards seal {root}`, which writes it anew."


def make_missing(root: Path) -> str:
    """What to do about shards that are not there."""
    return f"Run `mvd-offline extract {root}`, which makes only what is missing."


def restore_identity(root: Path) -> str:
    """What to do about store.json or plan.parquet, which no other file of a store can replace."""
    return (
        f"Restore the file from a copy, or remove it and run `mvd-offline plan RECIPE --videos CATALOG --store {root}` "
        "again with the recipe and the catalog that the store was made with; its shards are kept."
    )


def nearest(found: str, allowed: Iterable[str]) -> str:
    """` Did you mean ...?` with the nearest of the allowed names; empty where none is near.

    >>> nearest("flaot16", ["float32", "float16", "int8"])
    ' Did you mean float16?'
    """
    import difflib

    near = difflib.get_close_matches(found, list(allowed), n=1, cutoff=0.5)
    return f" Did you mean {near[0]}?" if near else ""
