"""The rows of one store by epoch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from planned_stores import planned_store, recipe_of

from mvd_offline.distillation.samples import StoreSamples
from mvd_offline.training.order import epoch_order


def test_an_epoch_is_the_shuffled_usable_rows_of_its_groups_shards(tmp_path: Path) -> None:
    recipe = recipe_of(groups=2, seed=5)
    store = planned_store(tmp_path, recipe, 10, broken={0, 3})
    samples = StoreSamples(recipe, store)
    plan = samples.plan
    usable = {view.view_id for view in plan if view.status == "ok"}

    for epoch in range(3):
        shards = [[row for row in plan.shard_view_ids(s).tolist() if row in usable] for s in plan.shards(epoch % 2)]
        expected = epoch_order(
            [np.array(rows) for rows in shards if rows], source=store.store_id, seed=5, epoch=epoch, window=2
        )
        assert samples.order(epoch).tolist() == expected.tolist()
    assert samples.per_epoch() == 8


@pytest.mark.parametrize("clips", [2, 3])
def test_the_clips_of_a_video_stay_together_across_shards_and_share_a_batch(tmp_path: Path, clips: int) -> None:
    recipe = recipe_of(groups=2, clips=clips)
    samples = StoreSamples(recipe, planned_store(tmp_path, recipe, 9, broken={4}))

    for epoch in (0, 1):
        rows = samples.order(epoch).tolist()
        videos = [[samples.plan[row].video_id for row in rows[i : i + clips]] for i in range(0, len(rows), clips)]
        assert all(len(set(names)) == 1 for names in videos)
        assert len({names[0] for names in videos}) == 8
        assert len(set(rows)) == len(rows) == 8 * clips == samples.per_epoch()
    assert samples.order(0).tolist() != sorted(samples.order(0).tolist())
