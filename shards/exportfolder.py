"""A folder that an export fills shard by shard: it says what it is first, and each shard is there whole or not at all.

export.json           what was asked for; another export into the same folder is refused
<name>                a shard's file
<name without
 its ending>.json     the shard's record: it is done when this is there, and what it was made of is still the same
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mvd_offline.shards import atomic
from mvd_offline.shards.creation import read_file, some
from mvd_offline.shards.errors import CorruptionError, IdentityError
from mvd_offline.shards.schema import SCHEMA_VERSION, all_differences, list_differences, open_document, seal_document
from mvd_offline.shards.shardfile import HashingSink

EXPORT_FILE = "export.json"


class ExportFolder:
    """An export's folder, made or found again; what dead writers left behind is removed.

    Raises:
        IdentityError: the folder holds another export, or something else.
    """

    def __init__(self, root: Path, identity: Mapping[str, Any], folders: tuple[str, ...] = ()) -> None:
        """`folders` are those below the root that shards go to."""
        self.root = root
        data = seal_document({**identity, "schema_version": SCHEMA_VERSION})
        root.mkdir(parents=True, exist_ok=True)
        with atomic.folder_lock(root):
            if (root / EXPORT_FILE).exists():
                self._require_the_same(data)
            else:
                self._require_empty()
                atomic.publish_bytes(root / EXPORT_FILE, data)
        for name in folders:
            (root / name).mkdir(exist_ok=True)
        for folder in (root, *(root / name for name in folders)):
            atomic.clean_folder(folder)

    def is_done(self, name: str, source: Mapping[str, str]) -> bool:
        """Whether a shard's file is there, made of the same commit records (see `write`)."""
        path, record = self.root / name, self._record_path(name)
        if not record.exists():
            return False
        try:
            document = open_document(read_file(record), str(record))
        except CorruptionError:
            return False
        return document.get("source") == source and path.is_file() and path.stat().st_size == document["size"]

    @contextlib.contextmanager
    def write(self, name: str, facts: Mapping[str, Any], source: Mapping[str, str]) -> Iterator[HashingSink]:
        """Publish a shard's file on a clean exit, then its record: `facts`, and the file's size and sha256.

        Args:
            source: sha256 of the commit records that it is made of, by column.
        """
        with atomic.temporary_file(self.root / name) as temporary:
            sink = HashingSink(temporary.stream)
            yield sink
            # A record never stands beside a file that it was not written for.
            atomic.remove_file(self._record_path(name))
            temporary.publish()
        written = {"file": Path(name).name, "size": sink.size, "sha256": sink.sha256.hexdigest()}
        document = {**facts, **written, "source": dict(source), "schema_version": SCHEMA_VERSION}
        atomic.publish_bytes(self._record_path(name), seal_document(document))

    def publish(self, name: str, data: bytes) -> None:
        """Write a file that is none of a shard's."""
        atomic.publish_bytes(self.root / name, data)

    def _record_path(self, name: str) -> Path:
        return (self.root / name).with_suffix(".json")

    def _require_the_same(self, wanted: bytes) -> None:
        path = self.root / EXPORT_FILE
        remedy = "Choose another folder, or remove this one."
        found = open_document(read_file(path, remedy), str(path), remedy)
        if differences := all_differences(open_document(wanted, EXPORT_FILE), found):
            raise IdentityError(
                f"{self.root} holds another export:{list_differences(differences, 'this export', 'the folder')}\n"
                "Choose another folder."
            )

    def _require_empty(self) -> None:
        names = sorted(path.name for path in self.root.iterdir())
        if foreign := [name for name in names if not name.startswith(atomic.TEMPORARY_PREFIX)]:
            raise IdentityError(
                f"{self.root} is not empty and holds no export (found {some(foreign)}). Choose another folder."
            )
