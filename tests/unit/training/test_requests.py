"""What each process of a run is asked to read: the same samples in the same steps for every launch and restart."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from mvd_offline.errors import RecipeError
from mvd_offline.recipe import TrainingSection
from mvd_offline.training.feeding import Requests, one_ahead, read_batches, to_device
from mvd_offline.training.order import BatchRequest, BatchShape
from mvd_offline.training.stopping import StopRequested

SAMPLES, BATCH, STEPS_PER_EPOCH, EPOCHS = 53, 12, 4, 3
"""Five rows of an epoch follow its last full batch: two leftovers of two."""


def order(epoch: int) -> NDArray[np.int64]:
    return np.random.Generator(np.random.Philox(key=epoch)).permutation(SAMPLES).astype(np.int64)


def requests(
    world: int, micro: int, rank: int, *, leftover: int | None = None, step: int = 0, steps: int | None = None
) -> Requests:
    epoch, batch = divmod(step, STEPS_PER_EPOCH)
    return Requests(
        order,
        BatchShape(BATCH, world, micro, leftover),
        rank=rank,
        steps_per_epoch=STEPS_PER_EPOCH,
        stop_step=EPOCHS * STEPS_PER_EPOCH if steps is None else steps,
        step=step,
        epoch=epoch,
        batch=batch,
    )


Samples = dict[int, tuple[list[tuple[int, int]], set[tuple[int, int]]]]


def samples_of(world: int, micro: int, *, leftover: int | None = None, step: int = 0) -> Samples:
    """For each step of a launch: (epoch, row) of its global batch in order, and of the leftovers it takes along."""
    found: Samples = {}
    for rank in range(world):
        at, shape = step, BatchShape(BATCH, world, micro, leftover)
        for request in requests(world, micro, rank, leftover=leftover, step=step):
            batch, extra = found.setdefault(at, ([(-1, -1)] * BATCH, set()))
            for place, row in enumerate(request.rows):
                if request.leftover:
                    assert (request.epoch, row) not in extra
                    extra.add((request.epoch, row))
                else:
                    assert batch[request.first + place] == (-1, -1)
                    batch[request.first + place] = (request.epoch, row)
            # The mean over its rows, divided: every row has the same weight in its step, whoever reads it.
            assert 1 / shape.divisor(request) / len(request.rows) == pytest.approx(world / BATCH)
            at += request.last_of_step
    return found


LAUNCHES = [(world, micro) for world in (1, 2, 3, 4) for micro in (1, 2, 3, 4, 6, 12) if BATCH // world % micro == 0]


@pytest.mark.parametrize("leftover", [None, 2, 12, 100])
def test_every_launch_and_every_restart_sees_the_same_samples_in_the_same_steps(leftover: int | None) -> None:
    whole = samples_of(1, BATCH, leftover=leftover)
    assert len(whole) == EPOCHS * STEPS_PER_EPOCH

    for (world, micro), step in itertools.product(LAUNCHES, range(EPOCHS * STEPS_PER_EPOCH)):
        if leftover and leftover < BATCH and leftover % world:
            continue
        resumed = samples_of(world, micro, leftover=leftover, step=step)
        assert resumed == {number: samples for number, samples in whole.items() if number >= step}, (world, micro, step)


def test_each_epochs_batches_are_its_order_without_what_follows_the_last_full_one() -> None:
    whole = samples_of(1, BATCH)

    for epoch in range(EPOCHS):
        steps = [whole[step][0] for step in range(epoch * STEPS_PER_EPOCH, (epoch + 1) * STEPS_PER_EPOCH)]
        rows = order(epoch)[: STEPS_PER_EPOCH * BATCH].tolist()
        assert list(itertools.chain(*steps)) == [(epoch, row) for row in rows]


def test_leftovers_of_an_epoch_join_the_first_step_of_the_next_and_the_last_epochs_nothing() -> None:
    """The quirk takes whole chunks only: four of the five rows that follow the last full batch."""
    with_quirk, without = samples_of(2, 3, leftover=2), samples_of(2, 3)

    assert [step for step, (_, extra) in with_quirk.items() if extra] == [STEPS_PER_EPOCH, 2 * STEPS_PER_EPOCH]
    for epoch in (1, 2):
        start = STEPS_PER_EPOCH * BATCH
        rows = order(epoch - 1)[start : start + 4].tolist()
        assert with_quirk[epoch * STEPS_PER_EPOCH][1] == {(epoch - 1, row) for row in rows}
    assert not any(extra for _, extra in without.values())
    assert {step: batch for step, (batch, _) in with_quirk.items()} == {s: batch for s, (batch, _) in without.items()}


def test_leftovers_come_before_the_step_and_are_shared_out_like_a_batch() -> None:
    first = list(requests(2, 3, 1, leftover=4, step=STEPS_PER_EPOCH, steps=STEPS_PER_EPOCH + 1))

    assert [(request.leftover, len(request.rows), request.last_of_step) for request in first] == [
        (True, 2, False),
        (False, 3, False),
        (False, 3, True),
    ]


def test_a_run_that_stops_at_an_epochs_end_reads_nothing_of_the_next() -> None:
    assert [request.leftover for request in requests(1, 12, 0, leftover=2, steps=STEPS_PER_EPOCH)] == [False] * 4
    assert list(requests(1, 12, 0, leftover=2, step=STEPS_PER_EPOCH, steps=STEPS_PER_EPOCH)) == []


def test_leftovers_that_do_not_divide_by_the_processes_are_refused() -> None:
    with pytest.raises(RecipeError, match=r"quirks.leftover_micro_batch is 3 .* does not divide by the 2 processes"):
        BatchShape(12, 2, 3, 3)


@pytest.mark.parametrize("workers", [0, 3])
def test_all_of_an_epoch_is_given_out_before_the_next_is_waited_for(workers: int) -> None:
    seen: list[int] = []

    def waiting(epoch: int) -> NDArray[np.int64]:
        assert len(seen) == 4 * epoch
        return order(epoch)

    asked = Requests(waiting, BatchShape(BATCH, 1, 12), rank=0, steps_per_epoch=4, stop_step=10, may_wait=True)
    training = TrainingSection(workers=workers, prefetch_batches=2)
    for request, batch in read_batches(Echo(), asked, training, torch.device("cpu")):
        assert batch["rows"].tolist() == list(request.rows)
        seen.append(request.batch)

    assert seen == [0, 1, 2, 3, 0, 1, 2, 3, 0, 1]


class Echo:
    """Reads nothing but the rows' own numbers."""

    def __call__(self, request: BatchRequest) -> dict[str, torch.Tensor]:
        return {"rows": torch.tensor(request.rows)}


def test_the_next_batch_is_on_its_way_before_one_is_given_out() -> None:
    begun: list[int] = []

    def begin(batch: dict[str, int]) -> dict[str, int]:
        begun.append(batch["number"])
        return {"number": 10 * batch["number"]}

    asked = list(itertools.islice(requests(1, BATCH, 0), 3))
    given = one_ahead(((request, {"number": number}) for number, request in enumerate(asked)), begin)
    for number, (request, batch) in enumerate(given):
        assert (request, batch) == (asked[number], {"number": 10 * number})
        assert begun == list(range(min(number + 2, 3)))
    assert begun == [0, 1, 2]
    assert not list(one_ahead(iter(()), begin))


def test_all_tensors_of_a_batch_go_to_the_device_and_the_rest_stays() -> None:
    batch = {"mask": torch.ones(2), "clips": {32: torch.ones(3)}, "tokens": None}
    moved = to_device(batch, torch.device("meta"))

    assert moved["mask"].device.type == moved["clips"][32].device.type == "meta"
    assert moved["tokens"] is None
    assert batch["mask"].device.type == "cpu"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_batches_reach_a_gpu_as_they_were_read() -> None:
    device = torch.device("cuda")
    read = read_batches(Echo(), requests(1, 3, 0), TrainingSection(workers=0), device)
    for (request, batch), asked in zip(read, requests(1, 3, 0), strict=True):
        moved = to_device(batch, device)
        assert moved["rows"].device.type == "cuda"
        assert tuple(moved["rows"].tolist()) == request.rows == asked.rows


def test_an_order_that_is_asked_to_stop_waiting_ends_the_requests() -> None:
    def waiting(epoch: int) -> NDArray[np.int64]:
        if epoch:
            raise StopRequested
        return order(epoch)

    found = list(Requests(waiting, BatchShape(BATCH, 1, 12), rank=0, steps_per_epoch=4, stop_step=12))

    assert len(found) == 4
