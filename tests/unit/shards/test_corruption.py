"""Whatever happens to a file of a store is found, and nothing false is read; `bench corruption` tries more often."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from small_stores import column_of, fill, new_store

from mvd_offline.bench.corruption import Reads, damage_and_look
from mvd_offline.bench.damage import Damage, copy_over
from mvd_offline.cli.main import main
from mvd_offline.errors import UsageError
from mvd_offline.shards import Store, open_store
from mvd_offline.shards.codecs import CODECS
from mvd_offline.shards.verify import verify

VIEWS = (0, 1, 2, 4, 5)
"""Two shards, of which the first ends with a gap and the second is short."""
FAILED = {2: "unreadable"}
COLUMNS = ("zarr_float32", "tar_float16", "zarr_bfloat16", "tar_int8")
TRIES = 160


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Two columns of each container, all codecs."""
    assert {name.partition("_")[2] for name in COLUMNS} == set(CODECS)
    columns = [column_of(name, container=name.partition("_")[0], codec=name.partition("_")[2]) for name in COLUMNS]
    root = tmp_path_factory.mktemp("corruption") / "store"
    store = new_store(root, columns, view_ids=VIEWS, rows_per_shard=4)
    fill(store, FAILED)
    store.seal()
    return open_store(root)


def test_all_damage_is_found_and_healed_and_nothing_false_is_read(store: Store) -> None:
    report = damage_and_look(TRIES, seed=0, store=store.root, quiet=True)
    assert report.failures == []
    assert report.total.tried == report.total.found == report.total.healed == TRIES
    assert report.total.rows.keys() == {"right", "refused"}
    assert report.total.rows.total() == TRIES * len(COLUMNS) * len(VIEWS)
    for kind in ("zarr: payload", "tar: payload"):
        assert 0 < report.kinds[kind].rows["refused"] < report.kinds[kind].rows["right"], kind
    for kind in ("commit record", "zarr.json", "zarr: index"):
        assert report.kinds[kind].rows["refused"] == 0, kind
    assert verify(store.root, "full").ok  # only the copy was damaged


def test_every_byte_of_a_store_belongs_to_a_kind(store: Store, tmp_path: Path) -> None:
    damage = Damage(store, tmp_path)
    covered: dict[str, set[int]] = {}
    for part in (part for parts in damage.parts.values() for part in parts if not part.record):
        covered.setdefault(part.path, set()).update(range(part.start, part.stop))
    sizes = {path.relative_to(store.root).as_posix(): path.stat().st_size for path in store.root.rglob("*.*")}
    assert covered == {name: set(range(size)) for name, size in sizes.items()}


def test_values_that_are_not_the_stores_would_be_seen(store: Store, tmp_path: Path) -> None:
    """Another store of the same views, whose checksums all hold."""
    others = [column_of(name, container="zarr", codec="float32") for name in COLUMNS]
    other = new_store(tmp_path / "other", others, view_ids=VIEWS, rows_per_shard=4)
    fill(other, FAILED | {0: "missing"})
    other.seal()
    outcomes = [outcome for outcome, _ in Reads(store).all_of(other.root)]
    assert outcomes.count("silent") >= 3 * 3  # another codec, another value
    assert outcomes.count("refused without need") == 4  # view 0
    assert outcomes.count("right") == 3 + 4  # the same column; the row that failed


def test_the_command_prints_the_table(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "corruption", str(store.root), "--tries", "3"]) == 0
    assert "0 failures in" in capsys.readouterr().out
    assert main(["bench", "corruption", str(store.root), "--tries", "2", "--seed", "1", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["failures"] == []


def test_a_store_that_is_damaged_already_is_refused(store: Store, tmp_path: Path) -> None:
    copy_over(store.root, tmp_path / "copy")
    (tmp_path / "copy/notes.txt").touch()
    with pytest.raises(UsageError, match="is damaged already"):
        damage_and_look(1, 0, store=tmp_path / "copy", quiet=True)
