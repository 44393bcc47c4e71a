"""Steps of a run, from epochs."""

from __future__ import annotations

import pytest

from mvd_offline.errors import UsageError
from mvd_offline.recipe import OptimSection, QuirkSection, TrainingSection
from mvd_offline.training.schedule import Schedule


def test_a_released_recipe_stops_before_the_end_of_its_schedule() -> None:
    optim = OptimSection(epochs=401, stop_after_epochs=400, warmup_epochs=40, batch_size=1024)

    schedule = Schedule.of(240_436, optim, TrainingSection(checkpoint_every_epochs=10))

    assert schedule == Schedule(
        steps_per_epoch=234, warmup_steps=9360, total_steps=93_834, stop_step=93_600, checkpoint_every=2340
    )


def test_fractions_of_epochs_are_steps() -> None:
    optim = OptimSection(epochs=1.5, warmup_epochs=0.25, batch_size=2)

    schedule = Schedule.of(9, optim, TrainingSection(checkpoint_every_epochs=0.01))

    assert (schedule.steps_per_epoch, schedule.warmup_steps, schedule.total_steps) == (4, 1, 6)
    assert (schedule.stop_step, schedule.checkpoint_every) == (6, 1)


def test_peak_and_floor_scale_with_the_batch() -> None:
    optim = OptimSection(epochs=2, warmup_epochs=0, batch_size=1024, base_lr=1.5e-4, min_lr=1e-4)

    schedule = Schedule.of(2048, optim, TrainingSection())

    assert schedule.learning_rate(0, optim) == pytest.approx(6e-4)
    assert schedule.learning_rate(4, optim) == pytest.approx(4e-4)


def test_the_floor_scales_with_the_batch_only_with_the_released_quirk() -> None:
    optim = OptimSection(epochs=2, warmup_epochs=0, batch_size=1024, base_lr=1.5e-4, min_lr=1e-4)
    schedule = Schedule.of(2048, optim, TrainingSection())

    floors = [schedule.learning_rate(4, optim, QuirkSection(scale_min_lr=scaled)) for scaled in (True, False)]

    assert floors == [pytest.approx(4e-4), pytest.approx(1e-4)]
    assert schedule.learning_rate(0, optim, QuirkSection(scale_min_lr=False)) == pytest.approx(6e-4)


def test_fewer_samples_than_a_batch_are_refused() -> None:
    with pytest.raises(UsageError, match="an epoch has 7 usable samples, fewer than one batch of 8"):
        Schedule.of(7, OptimSection(batch_size=8), TrainingSection())
