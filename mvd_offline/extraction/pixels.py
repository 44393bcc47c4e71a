"""All columns of a view come from the same pixels: a row made from others is refused before it is stored."""

from __future__ import annotations

from collections.abc import Iterable

from mvd_offline.errors import PixelMismatchError
from mvd_offline.shards.schema import RowRecord
from mvd_offline.shards.store import Store
from mvd_offline.video.views import View


class PixelWatch:
    """Knows which pixels each view of a shard had in the columns that are committed."""

    def __init__(self, store: Store, shard: int) -> None:
        """The caller has the shard's claim, so that no other run commits it meanwhile."""
        self._store, self._shard = store, shard
        self._recorded: dict[int, dict[str, RowRecord]] = {}
        for name in store.columns:
            if store.is_committed(name, shard):
                for row in store.record(name, shard).rows:
                    if row.status == "ok":
                        self._recorded.setdefault(row.view_id, {})[name] = row

    def see(self, view: View, columns: Iterable[str], *, pixels: str, decoder: str) -> None:
        """Hold a view that was rendered for these columns against the others.

        Raises:
            PixelMismatchError: the teacher of a committed column saw other pixels.
        """
        for other, row in self._recorded.get(view.view_id, {}).items():
            if row.pixels != pixels:
                raise PixelMismatchError(
                    f"column {', '.join(sorted(columns))}, shard {self._shard}: view {view.view_id} of video "
                    f"{view.video_id} renders to other pixels than the teacher of column {other} saw: hash {pixels} "
                    f"with {decoder} here, {row.pixels} with {row.decoder} there. Nothing of the shard was committed. "
                    "The video file, the decoder or Pillow changed: restore what changed and run the command again; "
                    f"or, if these pixels are the right ones, remove {self._store.record_path(other, self._shard)}, "
                    f"and `mvd-offline extract {self._store.root}` makes that shard of column {other} again, too."
                )
