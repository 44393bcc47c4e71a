"""What a killed extraction left: whether all that can be read of it is right, and how far it came."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from mvd_offline.shards import open_store
from mvd_offline.shards.verify import verify


def temporary_files(store: Path) -> list[str]:
    return [path.relative_to(store).as_posix() for path in store.rglob(".tmp-*")]


def damage(root: Path) -> list[str]:
    """Findings but for work that is not done yet and what a dead writer left."""
    expected = ["are not committed", "is not sealed", "not every column", "left behind", "image is no part"]
    store = open_store(root, sealed=False)
    if store.seal_record and not store.seal_record.columns.keys() <= set(store.columns):
        expected.append("index.parquet differs")  # a column was dropped, and its rows are still in the index
    findings = (finding.what for finding in verify(root, "quick").findings)
    return [what for what in findings if not any(words in what for words in expected)]


def committed_shards(store: Path) -> int:
    """Commit records of all columns."""
    return sum(path.stem.isdigit() for path in store.glob("commits/*/*.json"))


def wrong_rows(store: Path, finished: Path) -> list[str]:
    """Rows in the ledger of `store` that are not, to the bit, what the `finished` store of the same plan has."""
    ours, theirs = open_store(store, sealed=False), open_store(finished)
    wrong = []
    for column in ours.columns:
        ledger, expected = ours.status(column), theirs.status(column)
        for view_id in ledger.view_ids.tolist():
            if ledger.status[view_id] != expected.status[view_id]:
                wrong.append(f"{column} {view_id}: another status")
            elif ledger.ok[view_id]:
                ids = [view_id]
                if not np.array_equal(ours.read_coded(column, ids), theirs.read_coded(column, ids)):
                    wrong.append(f"{column} {view_id}: another target")
    return wrong
