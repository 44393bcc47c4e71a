"""The order of samples: a function of source, seed and epoch, shared out without remainder among any processes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from mvd_offline.errors import RecipeError
from mvd_offline.training.order import BatchShape, EpochRequests, epoch_order


def shards_of(sizes: Sequence[int]) -> list[NDArray[np.int64]]:
    """Shards of these many rows, ten row numbers apart."""
    return [np.arange(10 * i, 10 * i + size) for i, size in enumerate(sizes)]


def order(
    sizes: Sequence[int], *, source: str = "store", seed: int = 0, epoch: int = 0, window: int = 2
) -> NDArray[np.int64]:
    return epoch_order(shards_of(sizes), source=source, seed=seed, epoch=epoch, window=window)


SIZES = st.lists(st.integers(1, 9), min_size=1, max_size=12)


@given(sizes=SIZES, seed=st.integers(0, 5), epoch=st.integers(0, 5), window=st.integers(1, 14))
def test_an_epoch_sees_every_row_once(sizes: list[int], seed: int, epoch: int, window: int) -> None:
    rows = np.concatenate(shards_of(sizes))
    assert sorted(order(sizes, seed=seed, epoch=epoch, window=window)) == sorted(rows)


@given(sizes=SIZES, epoch=st.integers(0, 5), window=st.integers(1, 14))
def test_no_more_shards_than_the_window_are_open_at_a_time(sizes: list[int], epoch: int, window: int) -> None:
    shards = (order(sizes, epoch=epoch, window=window) // 10).tolist()
    first = {shard: shards.index(shard) for shard in shards}
    last = {shard: len(shards) - 1 - shards[::-1].index(shard) for shard in shards}

    for position in range(len(shards)):
        assert sum(first[shard] <= position <= last[shard] for shard in first) <= window


def test_rows_of_a_window_are_mixed_and_windows_change_between_epochs() -> None:
    sizes = [9] * 8
    shards = order(sizes, window=4) // 10
    assert len(set(shards[:9].tolist())) > 1, "rows of one window come from all of its shards"
    assert set(shards[:36].tolist()) != set((order(sizes, epoch=1, window=4) // 10)[:36].tolist())


def test_the_order_is_a_function_of_source_seed_and_epoch() -> None:
    sizes = [9, 8, 7, 6]
    base = order(sizes).tolist()

    assert order(sizes).tolist() == base
    assert order(sizes, source="other store").tolist() != base
    assert order(sizes, seed=1).tolist() != base
    assert order(sizes, epoch=1).tolist() != base


def test_the_order_does_not_change_between_versions() -> None:
    """Resumed runs rely on it: a change needs another ORDER_VERSION."""
    assert order([3, 3, 3, 2]).tolist() == [12, 21, 22, 11, 10, 20, 31, 30, 2, 1, 0]


def test_an_epoch_without_shards_is_empty() -> None:
    assert order([]).tolist() == []


@given(
    sizes=SIZES,
    world=st.integers(1, 4),
    micro=st.integers(1, 3),
    accumulation=st.integers(1, 3),
    first_batch=st.integers(0, 3),
)
def test_any_world_size_shares_out_the_same_global_batches(
    sizes: list[int], world: int, micro: int, accumulation: int, first_batch: int
) -> None:
    rows = order(sizes)
    batch_size = world * micro * accumulation
    shape = BatchShape(batch_size, world, micro)

    requests = [list(EpochRequests(rows, shape, epoch=3, rank=rank, first_batch=first_batch)) for rank in range(world)]

    assert {len(part) for part in requests} == {
        len(EpochRequests(rows, shape, epoch=3, rank=0, first_batch=first_batch))
    }
    seen: dict[int, dict[int, int]] = {}
    for request in (request for part in requests for request in part):
        positions = range(request.first, request.first + len(request.rows))
        seen.setdefault(request.batch, {}).update(zip(positions, request.rows, strict=True))
        assert request.epoch == 3
    assert sorted(seen) == list(range(first_batch, len(rows) // batch_size))
    for batch, members in seen.items():
        expected = rows[batch * batch_size : (batch + 1) * batch_size].tolist()
        assert [members[position] for position in range(batch_size)] == expected


def test_the_last_micro_batch_of_a_step_is_marked() -> None:
    requests = EpochRequests(np.arange(12), BatchShape(6, 1, 2), epoch=0, rank=0)
    assert [request.last_of_step for request in requests] == [False, False, True] * 2


def test_a_micro_batch_is_never_larger_than_a_processes_part() -> None:
    shape = BatchShape(8, 4, 16)
    assert (shape.per_process, shape.micro, shape.accumulation) == (2, 2, 1)


def test_a_batch_that_does_not_divide_by_the_processes_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"optim.batch_size is 10 .* does not divide by the 4 processes"):
        BatchShape(10, 4, 2)


def test_a_part_that_does_not_divide_by_the_micro_batch_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"has 6 samples of a batch, .* no multiple of .*micro_batch_size \(4\)"):
        BatchShape(12, 2, 4)
