"""Training on a store that is still being filled (`distill --follow`).

A group is used once every shard of it is committed in every column that the run reads. `wait` waits for the group that
an epoch would have on the finished store, so that the run is the very run that would have started later; `skip` takes
the complete groups in turn instead, and keeps in the run folder which group each epoch had.

The two runs are step for step the same where no later group has fewer full batches than those that were complete at
the start.

The number of steps of an epoch is fixed when the run starts: from the smallest group that is complete then. A group
that comes later and has fewer usable rows begins its order again from the start until the epoch is full.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from mvd_offline.distillation.checking import present_columns
from mvd_offline.distillation.group_ledger import GroupLedger
from mvd_offline.distillation.patience import Patience, say
from mvd_offline.distillation.samples import group_order, hash_of_rows, rows_of_group, store_names
from mvd_offline.errors import MvdError, TrainingStopped, UsageError
from mvd_offline.recipe import DistillRecipe
from mvd_offline.shards.errors import IdentityError
from mvd_offline.shards.store import Store
from mvd_offline.training.stopping import StopRequested, stop_requested
from mvd_offline.video.views import Plan

FollowMode: TypeAlias = Literal["wait", "skip"]
T = TypeVar("T")

POLL_SECONDS: Final = 0.2
"""Between two looks at the store, at first; a wait of minutes looks every `MOST_POLL_SECONDS`."""
MOST_POLL_SECONDS: Final = 5.0


@dataclass(frozen=True)
class Follow:
    """How a run treats a store that is still being filled."""

    mode: FollowMode = "wait"
    patience_seconds: float = 600.0
    """How long nothing may be committed before the run says so, again and again."""


class StoppedWaitingError(TrainingStopped):
    """A signal came before there was anything to train on."""

    def __init__(self, run: Path, signals: str) -> None:
        self.run, self.step = run, 0
        MvdError.__init__(
            self,
            f"stopped by {signals} while {run} waited for a group of its store to be complete; run the same command "
            "again to go on",
        )


class GrowingGroups:
    """Which groups of a store are complete in some columns, and which of their rows are usable."""

    def __init__(self, store: Store, plan: Plan, columns: Sequence[str]) -> None:
        self._store, self._plan, self._columns = store, plan, columns
        self._usable: dict[int, NDArray[np.bool_]] = {}

    def committed(self) -> set[int]:
        """Shards that are committed in every column."""
        return set.intersection(*map(self._store.committed, self._columns))

    def usable(self, group: int, committed: Set[int] | None = None) -> NDArray[np.bool_] | None:
        """For each row of the store's table whether it is a usable one of this group; None while it is incomplete.

        What it was once it stays: rows that are tried again later are not taken up.

        Args:
            committed: what `committed` gives, where the caller has it.
        """
        if group not in self._usable:
            shards = self._plan.shards(group)
            if not (self.committed() if committed is None else committed) >= set(shards):
                return None
            rows = np.zeros(self._plan.rows, bool)
            rows[rows_of_group(self._plan, group)] = True
            views = self._plan.view_ids[rows[self._plan.view_ids]]
            for column in self._columns:
                ledger = self._store.catch_up(column, shards)
                if not ledger.has_records(views):
                    return None  # a shard was taken back at this moment
                rows &= ledger.ok
            self._usable[group] = rows
        return self._usable[group]

    def complete(self) -> list[int]:
        """Groups that are complete and have a usable row."""
        committed = self.committed()
        found = ((group, self.usable(group, committed)) for group in range(self._plan.groups))
        return [group for group, usable in found if usable is not None and usable.any()]

    def count(self, group: int | None) -> tuple[int, int]:
        """Shards that are committed, of all shards: of a group, or of the store."""
        shards = range(self._store.shard_count) if group is None else self._plan.shards(group)
        return len(self.committed().intersection(shards)), len(shards)


class FollowedSamples:
    """The rows of a store that is still being filled, by epoch; `order` waits where there is nothing to learn from."""

    def __init__(self, recipe: DistillRecipe, store: Store, follow: Follow, ledger: GroupLedger, *, main: bool) -> None:
        """`main`: whether this process writes the run's ledger, which the others read, and speaks."""
        columns = present_columns(recipe, store)
        if not columns or recipe.targets == "online":
            raise UsageError(
                "--follow waits for the targets of a store, and this recipe reads none (targets: online, or no "
                "teacher): leave --follow out."
            )
        self.source, self.plan = store.store_id, Plan.read(store.plan_path)
        self._recipe, self._store, self._follow, self._main = recipe, store, follow, main
        self._groups, self._ledger = GrowingGroups(store, self.plan, columns), ledger
        self._rows, self._short = 0, set[int]()

    # ---- what the run is ---------------------------------------------------------------------------------------------

    def names(self) -> dict[str, str]:
        return {**store_names(self._recipe, self._store), "follow": self._follow.mode}

    def first_rows(self) -> int:
        """Rows of an epoch: as the run fixed them, or of the smallest group that is complete by now; waits for one.

        Raises:
            IdentityError: a group that the run has used has other usable rows now.
        """
        if self._ledger.begun:
            for group in self._ledger.used_groups():
                self._check(group, self._usable(group, "the run so far"))
            return self._ledger.rows_per_epoch()
        if self._follow.mode == "wait":
            self._usable(0, "the first epoch")
            groups = self._groups.complete() or [0]
        else:
            groups = self._wait(lambda: self._groups.complete() or None, None, "the first epoch")
        return min(int(self._usable(group, "the first epoch").sum()) for group in groups)

    def fix(self, rows: int) -> None:
        """Say how many rows an epoch has, in all processes alike, before the run begins."""
        self._rows = rows

    def record(self) -> None:
        """Keep what is fixed in the run folder, once it is there; called by the main process."""
        if not self._ledger.begun:
            self._ledger.begin(self._rows)

    def per_epoch(self) -> int:
        return self._rows

    # ---- its epochs --------------------------------------------------------------------------------------------------

    def order(self, epoch: int) -> NDArray[np.int64]:
        """Rows of an epoch in the order in which they are seen; waits until they are there.

        Raises:
            StopRequested: a signal asks to stop while it waits.
            IdentityError: a group of the run has other usable rows than it had.
        """
        group = epoch % self.plan.groups if self._follow.mode == "wait" else self._chosen(epoch)
        usable = self._usable(group, f"epoch {epoch}")
        self._check(group, usable)
        order = group_order(self._recipe, self.source, self.plan, usable, group, epoch)
        return self._filled(order, group)

    def _chosen(self, epoch: int) -> int:
        """The group of an epoch: as the ledger has it, or the next complete one after the last epoch's."""
        return self._wait(lambda: self._choice(epoch), None, f"epoch {epoch}")

    def _choice(self, epoch: int) -> int | None:
        known = self._ledger.group_of(epoch)
        if known is not None or not self._main:
            return known
        complete = self._groups.complete()
        if not complete:
            return None
        groups, last = self.plan.groups, self._last(epoch)
        chosen = min(complete, key=lambda group: (group - last - 1) % groups)
        self._ledger.choose(epoch, chosen)
        if chosen != epoch % groups:
            say(f"epoch {epoch} takes group {chosen} ({len(complete)} of {groups} groups are complete)")
        return chosen

    def _last(self, epoch: int) -> int:
        """The group of the epoch before; -1 at the start."""
        last = self._ledger.group_of(epoch - 1) if epoch else None
        return -1 if last is None else last

    def _usable(self, group: int, what: str) -> NDArray[np.bool_]:
        return self._wait(lambda: self._groups.usable(group), group, what)

    def _wait(self, found: Callable[[], T | None], group: int | None, what: str) -> T:
        """What `found` gives as soon as it is not None; `what` waits for a group, or for any."""
        if (value := found()) is not None:
            return value
        name = "a first group" if group is None else f"group {group} of {self.plan.groups}"
        patience = Patience(
            f"{what} waits for {name} of {self._store.root}", self._follow.patience_seconds, enabled=self._main
        )
        pause = POLL_SECONDS
        while (value := found()) is None:
            if stop_requested():
                raise StopRequested
            patience.tell(*self._groups.count(group))
            time.sleep(pause := min(MOST_POLL_SECONDS, 1.1 * pause))
        return value

    def _check(self, group: int, usable: NDArray[np.bool_]) -> None:
        """The group is what it was when the run used it first; from now on it is."""
        found = hash_of_rows(usable[rows_of_group(self.plan, group)])
        known = self._ledger.rows_hash(group)
        if known is None and self._main:
            self._ledger.use(group, found)
        if known not in (None, found):
            raise IdentityError(
                f"{self._ledger.run} was started on other data: the usable rows of group {group} had the hash {known} "
                f"and have {found} now; failed rows were tried again meanwhile. Give the store as it was, or another "
                "folder as --run."
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
