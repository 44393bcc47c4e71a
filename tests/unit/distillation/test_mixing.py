"""Several stores in one run: what an epoch takes of each, in what order, under which numbers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import cache
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from planned_stores import planned_store, recipe_of
from torch import Tensor

from mvd_offline.distillation.mixing import MixedReader, MixedSamples, StoreShare, interleave
from mvd_offline.distillation.rows import RunRows, StoreRows
from mvd_offline.distillation.samples import StoreSamples
from mvd_offline.errors import UsageError
from mvd_offline.shards.store import Store
from mvd_offline.training.feeding import Requests
from mvd_offline.training.order import BatchShape, EpochRequests

RECIPE = recipe_of()
VIDEOS, GROUPS = (14, 9, 5), (1, 2, 3)


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> list[Store]:
    """14 videos in one group; 9 in two, of which one is broken; 5 in three."""
    folder = tmp_path_factory.mktemp("stores")
    return [
        planned_store(folder / str(n), recipe_of(groups=groups, view_seed=n), videos, broken={2} if n == 1 else ())
        for n, (videos, groups) in enumerate(zip(VIDEOS, GROUPS, strict=True))
    ]


@pytest.fixture(scope="module")
def stores_of_clips(tmp_path_factory: pytest.TempPathFactory) -> dict[int, list[Store]]:
    """As `stores`, with two or three clips of each video."""
    folder = tmp_path_factory.mktemp("clips")
    return {
        clips: [
            planned_store(folder / f"{clips}-{n}", recipe_of(groups=groups, view_seed=n, clips=clips), videos)
            for n, (videos, groups) in enumerate(zip(VIDEOS, GROUPS, strict=True))
        ]
        for clips in (2, 3)
    }


@cache
def opened(store: Store, seed: int, clips: int = 1) -> StoreSamples:
    return StoreSamples(recipe_of(seed=seed, clips=clips), store)


def mixture(
    stores: Sequence[Store], weights: Sequence[float], seed: int = 0, clips: int = 1
) -> tuple[MixedSamples, RunRows]:
    samples = [opened(store, seed, clips) for store in stores]
    rows = RunRows(StoreRows(store, part.plan, Path(), ()) for store, part in zip(stores, samples, strict=True))
    return MixedSamples(samples, weights, rows), rows


WEIGHTS = st.lists(st.sampled_from([0.2, 0.5, 0.8, 1.0, 1.3, 2.0, 2.5]), min_size=3, max_size=3)


@given(epoch=st.integers(0, 5), seed=st.integers(0, 2))
def test_at_weight_1_an_epoch_has_each_row_of_each_stores_own_epoch_once(
    stores: list[Store], epoch: int, seed: int
) -> None:
    samples, rows = mixture(stores, [1, 1, 1], seed)
    parts, views = rows.split(samples.order(epoch))

    for place, store in enumerate(stores):
        assert views[parts == place].tolist() == opened(store, seed).order(epoch).tolist()


@given(weights=WEIGHTS, start=st.integers(0, 20), count=st.integers(1, 12))
def test_rows_that_follow_each_other_in_one_store_make_one_stretch(
    stores: list[Store], weights: list[float], start: int, count: int
) -> None:
    samples, rows = mixture(stores, weights)
    order = samples.order(0)
    wanted = order[start % len(order) :][:count].tolist()
    stretches = list(rows.stretches(wanted))

    places = range(len(wanted))
    assert [place for _, here, _ in stretches for place in places[here]] == list(places)
    parts, views = rows.split(wanted)
    assert [view for _, _, ids in stretches for view in ids] == views.tolist()
    assert all((parts[here] == part).all() for part, here, _ in stretches)
    assert all(one[0] != other[0] for one, other in pairwise(stretches))


@given(weights=WEIGHTS, epoch=st.integers(0, 5))
def test_an_epoch_takes_the_weighted_share_of_each_store(stores: list[Store], weights: list[float], epoch: int) -> None:
    samples, rows = mixture(stores, weights)
    order = samples.order(epoch)

    usable = [opened(store, 0).per_epoch() for store in stores]
    found = Counter(rows.split(order)[0].tolist())
    assert found == {n: round(weight * each) for n, (weight, each) in enumerate(zip(weights, usable, strict=True))}
    assert len(order) == samples.per_epoch() == len(set(order.tolist())), "no two rows of an epoch share a number"


@given(weights=WEIGHTS, epochs=st.integers(1, 8))
def test_over_the_epochs_every_store_is_passed_over_evenly(
    stores: list[Store], weights: list[float], epochs: int
) -> None:
    samples, rows = mixture(stores, weights)
    parts, views = rows.split(np.concatenate([samples.order(epoch) for epoch in range(epochs)]))

    for place, store in enumerate(stores):
        own = opened(store, 0)
        seen = views[parts == place]
        passes = len(seen) // own.per_epoch()
        whole = [row for number in range(passes) for row in own.order(number).tolist()]
        assert Counter(whole) <= Counter(seen.tolist()) <= Counter(whole + own.order(passes).tolist())


@given(sizes=st.lists(st.integers(1, 40), min_size=1, max_size=5))
def test_any_stretch_of_an_epoch_has_its_share_of_each_store(sizes: list[int]) -> None:
    sequences = [100 * n + np.arange(size) for n, size in enumerate(sizes)]
    mixed = interleave(sequences)

    for n, (size, sequence) in enumerate(zip(sizes, sequences, strict=True)):
        assert mixed[mixed // 100 == n].tolist() == sequence.tolist()
        sofar = np.cumsum(mixed // 100 == n)
        expected = np.arange(1, len(mixed) + 1) * size / len(mixed)
        assert np.abs(sofar - expected).max() <= len(sizes)


@given(weights=WEIGHTS, epoch=st.integers(0, 4), clips=st.sampled_from([2, 3]))
def test_the_clips_of_a_video_stay_side_by_side_in_one_micro_batch(
    stores_of_clips: dict[int, list[Store]], weights: list[float], epoch: int, clips: int
) -> None:
    mixed, rows = mixture(stores_of_clips[clips], weights, clips=clips)
    shape = BatchShape(4 * clips, 2, clips)

    order = mixed.order(epoch)

    assert len(order) == mixed.per_epoch()
    assert len(set(order.tolist())) == len(order)
    for start in range(0, len(order), clips):
        numbers = order[start : start + clips]
        assert numbers.tolist() == list(range(numbers[0], numbers[0] + clips))
        assert len({(rows[n][0].video_id, rows[n][1].store.root) for n in numbers.tolist()}) == 1
    for request in EpochRequests(order, shape, epoch=epoch, rank=1):
        assert len({rows[n][0].video_id for n in request.rows}) == 1
    for weight, store, taken in zip(weights, stores_of_clips[clips], mixed.taken, strict=True):
        assert abs(taken - weight * opened(store, 0, clips).per_epoch()) <= clips / 2


def test_where_single_clips_failed_an_epoch_still_takes_its_share(stores_of_clips: dict[int, list[Store]]) -> None:
    stores = stores_of_clips[2][:2]
    samples = [StoreSamples(recipe_of(clips=2), store) for store in stores]
    samples[1]._ok[3] = False
    rows = RunRows(StoreRows(store, part.plan, Path(), ()) for store, part in zip(stores, samples, strict=True))

    parts, views = rows.split(MixedSamples(samples, [1, 1], rows).order(0))

    for place, own in enumerate(samples):
        assert views[parts == place].tolist() == own.order(0)[: own.per_epoch()].tolist()
    assert samples[1].per_epoch() == 17


def test_the_order_depends_on_the_seed_the_epoch_and_the_stores_alone(stores: list[Store]) -> None:
    def order(given: Sequence[Store] = stores, seed: int = 0, epoch: int = 1) -> list[int]:
        return mixture(given, [1, 0.5, 2], seed)[0].order(epoch).tolist()

    assert order() == order()
    assert order() != order(seed=1)
    assert order() != order(epoch=2)
    assert order() != order([stores[0], stores[2], stores[1]])


def test_a_mixture_is_another_run_for_other_stores_and_for_other_weights(stores: list[Store]) -> None:
    base, more, fewer = (mixture(some, weights)[0] for some, weights in [
        (stores, [1, 1, 1]), (stores, [1, 1, 2]), (stores[:2], [1, 1]),
    ])  # fmt: skip

    assert len({base.source, more.source, fewer.source}) == 3
    changed = {name for name, value in more.names().items() if base.names()[name] != value}
    assert changed == {"weight_of_store_2"}
    assert {f"store_id_of_store_{n}" for n in range(3)} <= base.names().keys()


@given(world=st.sampled_from([1, 2, 4]), micro=st.integers(1, 2), start=st.integers(0, 11))
def test_any_number_of_processes_sees_the_same_batches_from_any_restart(
    stores: list[Store], world: int, micro: int, start: int
) -> None:
    samples, _ = mixture(stores, [1, 0.5, 2])
    steps = samples.per_epoch() // 4

    def batches(ranks: int, micro: int, first: int) -> list[list[int]]:
        epoch, batch = divmod(first, steps)
        shape = BatchShape(4, ranks, min(micro, 4 // ranks))
        seen: list[list[int]] = [[] for _ in range(first, 12)]
        for rank in range(ranks):
            step = 0
            for request in Requests(samples.order, shape, rank, steps, 12, first, epoch, batch):
                seen[step].extend(request.rows)
                step += request.last_of_step
        return seen

    assert batches(world, micro, start) == batches(1, 4, 0)[start:]


# ---- numbers ---------------------------------------------------------------------------------------------------------


def test_of_one_store_a_rows_number_is_its_view_id(stores: list[Store]) -> None:
    rows = mixture(stores[:1], [1])[1]
    views = opened(stores[0], 0).plan.view_ids

    assert rows.numbers(0, views).tolist() == views.tolist()
    assert rows[3] == (opened(stores[0], 0).plan[3], rows.stores[0])


@given(place=st.integers(0, 2), view=st.integers(0, 4), passes=st.integers(0, 3))
def test_numbers_tell_store_and_view_and_never_coincide(
    stores: list[Store], place: int, view: int, passes: int
) -> None:
    rows = mixture(stores, [1, 1, 1])[1]
    number = int(rows.numbers(place, np.array([view]), passes)[0])

    parts, views = rows.split([number])
    assert (parts.tolist(), views.tolist()) == ([place], [view])
    assert rows[number] == (opened(stores[place], 0).plan[view], rows.stores[place])
    every = [
        rows.numbers(n, np.arange(part.plan.rows), again) for n, part in enumerate(rows.stores) for again in range(4)
    ]
    assert len(set(np.concatenate(every).tolist())) == sum(map(len, every))


class _Echo:
    """Targets that say where they come from."""

    def __init__(self, store: int) -> None:
        self._store = store

    def sizes(self, student_size: int) -> tuple[int, ...]:
        return (student_size,)

    def memory(self, rows: int, tokens: NDArray[np.int64]) -> tuple[dict[str, Tensor], dict[str, NDArray[np.int64]]]:
        self.made = torch.full((rows, tokens.shape[1], 2), -1)
        return {"video": self.made}, {"video": self.made.numpy()}

    def fill(self, arrays: dict[str, NDArray[np.int64]], view_ids: list[int], tokens: NDArray[np.int64]) -> None:
        arrays["video"][:, :, 0] = 1000 * self._store + np.array(view_ids)[:, None]
        arrays["video"][:, :, 1] = tokens


@given(data=st.data(), batch=st.integers(1, 7))
def test_each_row_of_a_batch_is_read_from_its_own_store_at_its_own_tokens(
    stores: list[Store], data: st.DataObject, batch: int
) -> None:
    rows = mixture(stores, [1, 1, 1])[1]
    wanted = data.draw(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 4)), min_size=batch, max_size=batch))
    numbers = [int(rows.numbers(place, np.array([view]))[0]) for place, view in wanted]
    tokens = np.arange(2 * batch).reshape(batch, 2)

    readers = [_Echo(n) for n in range(3)]
    found = MixedReader(readers, rows).read(numbers, tokens)["video"]  # type: ignore[arg-type]

    assert found is readers[0].made, "nothing is copied"
    assert found[:, :, 0].tolist() == [[1000 * place + view] * 2 for place, view in wanted]
    assert found[:, :, 1].tolist() == tokens.tolist()


# ---- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("weight", [0.0, -1.0, float("nan"), float("inf")])
def test_a_weight_that_means_nothing_is_refused(weight: float) -> None:
    with pytest.raises(UsageError, match="allowed are weights above 0"):
        StoreShare(Path("store"), weight)


def test_a_weight_that_takes_no_row_is_refused(stores: list[Store]) -> None:
    with pytest.raises(UsageError, match=r"--mix 0\.01 takes no row of a store that has 14 usable rows"):
        mixture(stores, [0.01, 1, 1])
