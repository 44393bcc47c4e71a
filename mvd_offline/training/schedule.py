"""Which step of a run is what: warm-up, the end of the schedule, where the run stops, when it saves."""

from __future__ import annotations

from dataclasses import dataclass

from mvd_offline.errors import UsageError
from mvd_offline.recipe import OptimSection, QuirkSection, TrainingSection
from mvd_offline.training.optim import learning_rate

NO_QUIRKS = QuirkSection()
"""What pretraining and fine-tuning train with: no leftovers, and a floor that scales with the batch."""


@dataclass(frozen=True)
class Schedule:
    """Steps of a run, from epochs."""

    steps_per_epoch: int
    warmup_steps: int
    total_steps: int
    stop_step: int
    checkpoint_every: int

    @classmethod
    def of(cls, samples: int, optim: OptimSection, training: TrainingSection) -> Schedule:
        steps = samples // optim.batch_size
        if not steps:
            raise UsageError(
                f"an epoch has {samples} usable samples, fewer than one batch of {optim.batch_size}; "
                f"--set optim.batch_size to at most {samples}, or add videos."
            )
        return cls(
            steps_per_epoch=steps,
            warmup_steps=round(optim.warmup_epochs * steps),
            total_steps=round(optim.epochs * steps),
            stop_step=round((optim.stop_after_epochs or optim.epochs) * steps),
            checkpoint_every=max(1, round(training.checkpoint_every_epochs * steps)),
        )

    def learning_rate(self, step: int, optim: OptimSection, quirks: QuirkSection = NO_QUIRKS) -> float:
        return learning_rate(
            step,
            peak=optim.peak_lr,
            floor=quirks.floor_lr(optim),
            warmup_steps=self.warmup_steps,
            total_steps=self.total_steps,
        )
