"""Training on a store that is still being filled (`distill --follow`).

A group is used once every shard of it is committed in every column that the run reads. `wait` waits for the group that
an epoch would have on the finished store, so that the run is the very run that would have started later; `skip` takes
the complete groups in turn instead, and keeps in the run folder which group each epoch had.

All processes of a launch look at the store in step, and go on with a group once all see the same of it. A signal to one
of them stops them all.

The two runs are step for step the same where no later group has fewer full batches than those that were complete at
the start.

The number of steps of an epoch is fixed when the run starts: from the smallest group that is complete then. A group
that comes later and has fewer usable rows begins its order again from the start until the epoch is full.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from mvd_offline.distillation.agreement import from_main, of_all
from mvd_offline.distillation.checking import present_columns, read_columns
from mvd_offline.distillation.group_ledger import GroupLedger
from mvd_offline.distillation.growing import GrowingGroups
from mvd_offline.distillation.patience import Patience, say
from mvd_offline.distillation.samples import group_order, store_names
from mvd_offline.errors import MvdError, TrainingStopped, UsageError, stopped_by
from mvd_offline.recipe import DistillRecipe
from mvd_offline.shards.errors import IdentityError
from mvd_offline.shards.store import Store
from mvd_offline.training.stopping import StopRequested, stop_requested
from mvd_offline.video.views import Plan

FollowMode: TypeAlias = Literal["wait", "skip"]

POLL_SECONDS: Final = 0.2
"""Between two looks at the store, at first; a wait of minutes looks every `MOST_POLL_SECONDS`."""
MOST_POLL_SECONDS: Final = 5.0


@dataclass(frozen=True)
class Follow:
    """How a run treats a store that is still being filled."""

    mode: FollowMode = "wait"
    patience_seconds: float = 600.0
    """How long nothing may be committed before the run says so, again and again; and how long processes of a launch may
    see different states of a group before the run ends."""


class StoppedWaitingError(TrainingStopped):
    """A signal came before there was anything to train on."""

    def __init__(self, run: Path, signals: str) -> None:
        self.run, self.step = run, 0
        MvdError.__init__(
            self,
            f"{stopped_by(signals)} while {run} waited for a group of its store to be complete; run the same command "
            "again to go on",
        )


class FollowedSamples:
    """The rows of a store that is still being filled, by epoch; `order` waits where there is nothing to learn from.

    All processes of a launch call `begin`, `record` and `order`, in the same sequence.
    """

    def __init__(self, recipe: DistillRecipe, store: Store, follow: Follow, ledger: GroupLedger, *, main: bool) -> None:
        """`main`: whether this process, which alone uses the run's ledger, also speaks."""
        columns = read_columns(recipe, store)
        if not present_columns(recipe, store) or recipe.targets == "online":
            raise UsageError(
                "--follow waits for the targets of a store, and this recipe reads none (targets: online, or no "
                "teacher): leave --follow out."
            )
        self.source, self.plan = store.store_id, Plan.read(store.plan_path).load()
        self._recipe, self._store, self._follow, self._main = recipe, store, follow, main
        self._groups, self._ledger = GrowingGroups(store, self.plan, columns), ledger
        self._rows, self._short = 0, set[int]()

    # ---- what the run is ---------------------------------------------------------------------------------------------

    def names(self) -> dict[str, str]:
        return {**store_names(self._recipe, self._store), "follow": self._follow.mode}

    def begin(self) -> None:
        """Fix the rows of an epoch: as the run has them, or of the smallest group that is complete; waits for one.

        Raises:
            StopRequested: a signal asks to stop while it waits.
            IdentityError: a group that the run has used has other usable rows now.
        """
        groups = from_main(lambda: self._ledger.used_groups() if self._ledger.begun else None)
        if groups is None:
            agreed = self._agreed(0 if self._follow.mode == "wait" else None, "the first epoch")
            self._rows = from_main(lambda: self._fewest_rows(agreed))
            return
        for group in groups:
            self._used(group, "the run so far")
        self._rows = from_main(self._ledger.rows_per_epoch)

    def record(self) -> None:
        """Keep what is fixed in the run folder, once it is there."""
        from_main(lambda: None if self._ledger.begun else self._ledger.begin(self._rows))

    def per_epoch(self) -> int:
        return self._rows

    def _fewest_rows(self, agreed: Iterable[int]) -> int:
        groups = self._groups.complete() or {group: self._known(group) for group in agreed}
        return min(int(usable.sum()) for usable in groups.values())

    # ---- its epochs --------------------------------------------------------------------------------------------------

    def order(self, epoch: int) -> NDArray[np.int64]:
        """Rows of an epoch in the order in which they are seen; waits until they are there.

        Raises:
            StopRequested: a signal asks a process of the launch to stop while it waits.
            IdentityError: a group of the run has other usable rows than it had, or processes see different ones.
        """
        group = epoch % self.plan.groups if self._follow.mode == "wait" else self._chosen(epoch)
        usable = self._used(group, f"epoch {epoch}")
        order = group_order(self._recipe, self.source, self.plan, usable, group, epoch)
        return self._filled(order, group)

    def _chosen(self, epoch: int) -> int:
        """The group of an epoch: as the ledger has it, or the next complete one after the last epoch's."""
        known = from_main(lambda: self._ledger.group_of(epoch))
        if known is not None:
            return known
        complete = self._agreed(None, f"epoch {epoch}")
        return from_main(lambda: self._choice(epoch, complete))

    def _choice(self, epoch: int, complete: Mapping[int, str]) -> int:
        groups, last = self.plan.groups, self._ledger.group_of(epoch - 1) if epoch else None
        start = 0 if last is None else last + 1
        chosen = min(complete, key=lambda group: (group - start) % groups)
        self._ledger.choose(epoch, chosen)
        if chosen != epoch % groups:
            say(f"epoch {epoch} takes group {chosen} ({len(complete)} of {groups} groups are complete)")
        return chosen

    def _used(self, group: int, what: str) -> NDArray[np.bool_]:
        """Usable rows of a group, once it is complete; they are what the run used first, and from now on they are.

        Raises:
            IdentityError: they are others.
        """
        found = self._agreed(group, what)[group]
        known = from_main(lambda: self._ledger.use(group, found))
        if known != found:
            raise IdentityError(
                f"{self._ledger.run} was started on other data: the usable rows of group {group} had the hash {known} "
                f"and have {found} now; failed rows were tried again meanwhile. Give the store as it was, or another "
                "folder as --run."
            )
        return self._known(group)

    def _known(self, group: int) -> NDArray[np.bool_]:
        usable = self._groups.usable(group)
        assert usable is not None, "what was complete once stays"
        return usable

    # ---- waiting -----------------------------------------------------------------------------------------------------

    def _agreed(self, group: int | None, what: str) -> dict[int, str]:
        """Hashes of the usable rows of complete groups, as soon as all processes see the same of one.

        Args:
            group: the one that is waited for; any when None.
            what: waits for it.
        """
        name = "a first group" if group is None else f"group {group} of {self.plan.groups}"
        waiting = f"{what} waits for {name} of {self._store.root}"
        patience = Patience(waiting, self._follow.patience_seconds, enabled=self._main)
        pause = POLL_SECONDS
        while True:
            looks = of_all(lambda: self._look(group, patience))
            if any(look.stop for look in looks):
                raise StopRequested
            if alike := _alike(looks):
                return alike
            if disputed := _disputed(looks):
                if any(look.patience_is_over for look in looks):
                    raise self._dispute(disputed[0], looks)
                self._groups.look_again(_seen_otherwise(looks))
                patience.differ(f"processes of this launch do not see the same of {_listed(disputed)}")
            else:
                patience.tell(*looks[0].shards)
            time.sleep(pause := min(MOST_POLL_SECONDS, 1.1 * pause))

    def _look(self, group: int | None, patience: Patience) -> _Look:
        return _Look(self._groups.seen(group), self._groups.count(group), stop_requested(), patience.is_over)

    def _dispute(self, group: int, looks: Sequence[_Look]) -> IdentityError:
        seen = "; ".join(
            f"process {number}: {look.seen.get(group, 'not complete')}" for number, look in enumerate(looks)
        )
        return IdentityError(
            f"the processes of this launch see different states of group {group} of {self._store.root}, for more than "
            f"{self._follow.patience_seconds:g} s. Hashes of its usable rows: {seen}. Give all processes the same "
            "store, on a file system whose changes all machines see, or a longer --follow-patience; the same command "
            "goes on."
        )

    def _filled(self, order: NDArray[np.int64], group: int) -> NDArray[np.int64]:
        """At least as many rows as an epoch trains on."""
        batch = self._recipe.optim.batch_size
        needed = self.per_epoch() // batch * batch
        if len(order) >= needed:
            return order
        if not len(order):
            raise UsageError(
                f"group {group} of {self._store.root} has no usable row: every view of it failed. See `mvd-offline "
                f"shards stats {self._store.root}`, then `mvd-offline extract {self._store.root} --retry STATUS`."
            )
        if self._main and group not in self._short:
            self._short.add(group)
            say(
                f"warning: group {group} has {len(order)} usable rows and the epochs of this run have {needed}: its "
                "order begins again from the start until the epoch is full"
            )
        return np.resize(order, needed)


@dataclass(frozen=True)
class _Look:
    """What one process sees of the store at one moment, and what has become of itself meanwhile."""

    seen: Mapping[int, str]
    """`GrowingGroups.seen`: hash of the usable rows by complete group."""
    shards: tuple[int, int]
    """`GrowingGroups.count`: committed ones, of all."""
    stop: bool
    patience_is_over: bool


def _alike(looks: Sequence[_Look]) -> dict[int, str]:
    """The groups of which all processes see the same."""
    first, *others = looks
    return {group: rows for group, rows in first.seen.items() if all(look.seen.get(group) == rows for look in others)}


def _disputed(looks: Sequence[_Look]) -> list[int]:
    """The groups that some processes see otherwise than others, or not at all."""
    return sorted({group for look in looks for group in look.seen} - _alike(looks).keys())


def _seen_otherwise(looks: Sequence[_Look]) -> list[int]:
    """The groups that are complete for several processes, but not alike; a group that one lacks it will look for."""
    seen = {(group, rows) for look in looks for group, rows in look.seen.items()}
    return [group for group, count in Counter(group for group, _ in seen).items() if count > 1]


def _listed(groups: Sequence[int]) -> str:
    return f"group {groups[0]}" if len(groups) == 1 else f"groups {', '.join(map(str, groups))}"
