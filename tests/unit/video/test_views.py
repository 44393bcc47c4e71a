"""The plan is a pure function of catalog, view section and seed; a view has one set of pixels."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from itertools import cycle
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mvd_offline.errors import UsageError, VideoError
from mvd_offline.recipe import ViewSection
from mvd_offline.video.catalog import Catalog, Video
from mvd_offline.video.crops import CropBox, center_crop, multiscale_crop_shapes
from mvd_offline.video.decode import decode, probe
from mvd_offline.video.synthetic import draw_frames, encode
from mvd_offline.video.views import Plan, View, pixel_hash, render, render_sizes

TINY = ViewSection(frames=8, stride=2, image_size=32)


SECTIONS = st.builds(
    lambda crop, **values: TINY.model_copy(update={"crop": crop, **values}),
    crop=st.sampled_from(["multiscale", "center", "random_resized"]),
    groups=st.integers(1, 3),
    seed=st.integers(0, 3),
    num_sample=st.integers(1, 3),
    flip=st.sampled_from([0.0, 0.5]),
)


def video(number: int, **changes: object) -> Video:
    name = f"class/{number:04d}.mp4"
    facts: dict[str, object] = {
        "video_id": name, "path": name, "label": number % 3, "label_name": "class", "frames": 30 + number % 50,
        "fps": 25.0, "width": 64 + number % 9, "height": 48 + number % 7, "size": 1, "mtime_ns": 2, "sha256": "ab",
        "status": "ok", "detail": "", "decoder": "decord",
    }  # fmt: skip
    return Video(**facts | changes)  # type: ignore[arg-type]


def catalog(*numbers: int) -> Catalog:
    return Catalog(tuple(video(number) for number in numbers), Path("/videos"), ("a", "b", "c"))


def essence(view: View) -> View:
    """A view without its place in the table, which other videos may shift."""
    return replace(view, view_id=0, shard=0)


@pytest.fixture
def one_video(tmp_path: Path) -> tuple[View, Path]:
    from mvd_offline.randomness import KeyedStream

    encode(tmp_path / "a.mp4", draw_frames(88, 64, 40, "checks", "left", KeyedStream(3)), 25)
    facts = probe(tmp_path / "a.mp4")
    row = video(0, video_id="a.mp4", path="a.mp4", frames=facts.frames, width=facts.width, height=facts.height)
    return Plan.from_catalog(Catalog((row,), tmp_path), TINY, 4)[0], tmp_path


# ---- the plan


def test_the_same_catalog_gives_the_same_bytes_in_any_order_of_videos() -> None:
    one = Plan.from_catalog(catalog(*range(20)), TINY, 8)
    other = Plan.from_catalog(catalog(*reversed(range(20))), TINY, 8)
    assert one.to_bytes() == other.to_bytes()
    assert one.sha256 == other.sha256


def test_what_a_scan_learns_about_times_and_places_is_not_in_the_plan() -> None:
    moved = Catalog(
        tuple(replace(v, mtime_ns=9, size=9) for v in catalog(1, 2).videos), Path("/elsewhere"), ("a", "b", "c")
    )
    assert Plan.from_catalog(moved, TINY, 8).sha256 == Plan.from_catalog(catalog(1, 2), TINY, 8).sha256


def test_a_plan_is_read_back_with_its_very_bytes(tmp_path: Path) -> None:
    plan = Plan.from_catalog(catalog(*range(5)), TINY, 4)
    (tmp_path / "plan.parquet").write_bytes(plan.to_bytes())
    back = Plan.read(tmp_path / "plan.parquet")
    assert back.to_bytes() == plan.to_bytes()
    assert list(back) == list(plan)
    assert (back.section, back.classes, back.rows_per_shard) == (TINY, ("a", "b", "c"), 4)


def test_one_sample_a_video_draws_the_views_that_it_always_drew() -> None:
    # Stores are bound to these views: they must stay what they were before views could flip or come several a video.
    section = TINY.model_copy(update={"groups": 2})
    for crop, digest in (
        ("multiscale", "38e1bc7e90d21d879091236145063dc45bc391782f248b1ce9d2eed8e0c6ab14"),
        ("center", "74e7314e5f9722a24fec2ecc2134ee0443bed386dd5743693430f854b780dade"),
    ):
        views = [
            [v.view_id, v.video_id, v.group, v.shard, v.frame_indices, v.crop.x, v.crop.y, v.crop.w, v.crop.h, v.flip]
            for v in Plan.from_catalog(catalog(*range(20)), section.model_copy(update={"crop": crop}), 8)
        ]
        assert hashlib.sha256(json.dumps(views).encode()).hexdigest() == digest


@settings(max_examples=40)
@given(
    first=st.sets(st.integers(0, 99), min_size=1, max_size=12),
    more=st.sets(st.integers(0, 99), max_size=12),
    rows_per_shard=st.integers(1, 9),
    section=SECTIONS,
)
def test_adding_videos_never_changes_existing_views(
    first: set[int], more: set[int], rows_per_shard: int, section: ViewSection
) -> None:
    small = Plan.from_catalog(catalog(*first), section, rows_per_shard)
    large = Plan.from_catalog(catalog(*(first | more)), section, rows_per_shard)
    views: dict[tuple[str, int], list[View]] = {}
    for view in large:
        views.setdefault((view.video_id, view.group), []).append(essence(view))
    clips = section.num_sample
    rows = list(map(essence, small))
    for start in range(0, len(rows), clips):
        assert rows[start : start + clips] == views[rows[start].video_id, rows[start].group]
    order = [view.video_id for view in rows]
    assert order == [view.video_id for view in large if view.video_id in set(order)]


@settings(max_examples=25)
@given(st.integers(1, 30), st.integers(1, 9), st.integers(1, 4), st.integers(1, 3))
def test_a_group_starts_at_a_shard_boundary_and_holds_each_clip_once(
    videos: int, rows: int, groups: int, clips: int
) -> None:
    section = TINY.model_copy(update={"groups": groups, "num_sample": clips})
    plan = Plan.from_catalog(catalog(*range(videos)), section, rows)
    assert plan.videos == videos
    assert len(plan) == videos * clips * groups == len(plan.view_ids)
    assert plan.rows == plan.shard_count * rows == groups * -(-videos * clips // rows) * rows
    seen = []
    for group in range(groups):
        views = [plan[view_id] for shard in plan.shards(group) for view_id in plan.shard_view_ids(shard)]
        assert {view.group for view in views} == {group}
        assert len({view.video_id for view in views}) == videos == len(views) // clips
        assert all(view.video_id == views[i // clips * clips].video_id for i, view in enumerate(views))
        assert [view.view_id for view in views] == [group * plan.rows // groups + i for i in range(videos * clips)]
        assert all(view.shard == view.view_id // rows for view in views)
        seen += [view.view_id for view in views]
    assert seen == plan.view_ids.tolist()
    gaps = set(range(plan.rows)) - set(seen)
    assert not any(gap in plan for gap in gaps)


def test_views_have_official_crops_and_frames_of_their_video() -> None:
    plan = Plan.from_catalog(catalog(*range(60)), TINY, 8)
    for view in plan:
        assert view.crop.inside(view.width, view.height)
        assert (view.crop.w, view.crop.h) in multiscale_crop_shapes(view.width, view.height, 32)
        assert len(view.frame_indices) == 8
        assert view.frame_indices[0] <= view.frames - 16
        assert view.frame_indices[-1] < view.frames
        assert not view.flip
    assert len({view.crop for view in plan}) > 30


def test_groups_and_seeds_draw_other_views() -> None:
    plan = Plan.from_catalog(catalog(*range(30)), TINY.model_copy(update={"groups": 2}), 30)
    pairs = [(essence(plan[i]), essence(plan[30 + i])) for i in range(30)]
    assert sum((a.crop, a.frame_indices) == (b.crop, b.frame_indices) for a, b in pairs) < 3
    other = Plan.from_catalog(catalog(*range(30)), TINY.model_copy(update={"seed": 1}), 30)
    assert [view.video_id for view in other] != [view.video_id for view in plan][:30]


def test_the_clips_of_a_video_start_in_equal_parts_of_it_each_with_its_own_crop() -> None:
    section = TINY.model_copy(update={"num_sample": 3, "groups": 20})
    plan = Plan.from_catalog(catalog(*range(10)), section, 8)
    crops, starts = set(), set()
    for view, segment in zip(plan, cycle(range(3)), strict=False):
        part = (view.frames - 16 + 1) // 3
        start = view.frame_indices[0] - segment * part
        assert 0 <= start < part
        starts.add(start / part)
        crops.add((view.group, view.video_id, view.crop))
    assert min(starts) < 0.1
    assert max(starts) > 0.7
    assert len(crops) > 500


@pytest.mark.parametrize("frames", [1, 10, 16, 17])
def test_clips_of_a_video_with_fewer_starts_than_clips_lie_inside_it(frames: int) -> None:
    section = TINY.model_copy(update={"num_sample": 4, "groups": 8})
    short = Catalog((video(0, frames=frames),), Path("/videos"))
    views = list(Plan.from_catalog(short, section, 4))
    assert len(views) == 32
    assert {view.frame_indices[0] for view in views} == set(range(max(1, frames - 15)))


def test_random_resized_crops_cover_the_share_that_is_asked_for() -> None:
    section = TINY.model_copy(update={"crop": "random_resized", "crop_area": (0.3, 0.6)})
    views = list(Plan.from_catalog(catalog(*range(99)), section, 8))
    shares = [view.crop.w * view.crop.h / (view.width * view.height) for view in views]
    assert 0.28 < min(shares) < 0.34
    assert 0.56 < max(shares) < 0.62
    assert {view.crop.w / view.crop.h > 1 for view in views} == {True, False}


def test_flips_are_drawn_stored_and_rendered(tmp_path: Path) -> None:
    section = TINY.model_copy(update={"flip": 0.5})
    plan = Plan.from_catalog(catalog(*range(99)), section, 8)
    assert 35 < sum(view.flip for view in plan) < 65
    straight = Plan.from_catalog(catalog(*range(99)), TINY, 8)
    assert [replace(view, flip=False) for view in plan] == list(straight)
    assert [view.flip for view in Plan.from_bytes(plan.to_bytes())] == [view.flip for view in plan]


def test_an_image_is_a_clip_of_one_frame() -> None:
    section = ViewSection(
        frames=1, stride=1, tubelet_size=1, image_size=32, crop="random_resized", flip=0.5, num_sample=2, groups=2
    )
    images = [video(n, frames=1, fps=0.0, decoder="pillow") for n in range(5)]
    views = list(Plan.from_catalog(Catalog(tuple(images), Path("/images")), section, 4))
    assert {view.frame_indices for view in views} == {(0,)}
    assert {view.decoder for view in views} == {"pillow"}
    assert len({view.crop for view in views}) > 15


def test_centre_crops_are_available() -> None:
    section = TINY.model_copy(update={"crop": "center"})
    assert all(
        view.crop == center_crop(view.width, view.height) for view in Plan.from_catalog(catalog(1, 2), section, 4)
    )


def test_videos_that_cannot_be_read_keep_a_row_with_their_reason() -> None:
    broken = video(7, status="unreadable", detail="no moov", frames=0, width=0, height=0, decoder="")
    plan = Plan.from_catalog(Catalog((video(1), broken), Path("/videos")), TINY, 4)
    (view,) = (view for view in plan if view.video_id == broken.video_id)
    assert (view.status, view.detail, view.frame_indices, view.decoder) == ("unreadable", "no moov", (), None)
    with pytest.raises(VideoError, match="no moov") as caught:
        render(view, "/videos", 32)
    assert caught.value.status == "unreadable"


def test_a_plan_that_is_read_says_what_the_one_that_was_drawn_says(tmp_path: Path) -> None:
    broken = video(7, status="unreadable", detail="no moov", frames=0, width=0, height=0, decoder="")
    drawn = Plan.from_catalog(
        Catalog((video(1), broken, video(2, label=5)), Path("/videos")), TINY.model_copy(update={"groups": 2}), 2
    )
    (tmp_path / "plan.parquet").write_bytes(drawn.to_bytes())
    for plan in (Plan.read(tmp_path / "plan.parquet"), Plan.read(tmp_path / "plan.parquet").load()):
        assert list(plan) == list(drawn)
        assert (plan.sha256, plan.to_bytes()) == (drawn.sha256, drawn.to_bytes())
        views = list(drawn)
        assert plan.view_ids.tolist() == [view.view_id for view in views]
        assert plan.ok.tolist() == [view.status == "ok" for view in views]
        assert plan.labels.tolist() == [view.label for view in views]
        assert plan.counts() == {"ok": 4, "unreadable": 2}


def test_views_that_do_not_exist_are_refused() -> None:
    plan = Plan.from_catalog(catalog(0, 1, 2), TINY, 4)
    for view_id in (-1, 3, 4):
        with pytest.raises(KeyError, match=f"view {view_id} does not exist"):
            plan[view_id]
    with pytest.raises(UsageError, match="group 1 does not exist"):
        plan.shards(1)


def test_what_is_no_plan_is_refused(tmp_path: Path) -> None:
    catalog(1).write(tmp_path / "catalog.parquet")
    with pytest.raises(UsageError, match="holds no plan"):
        Plan.read(tmp_path / "catalog.parquet")
    with pytest.raises(UsageError, match="no such plan"):
        Plan.read(tmp_path / "none.parquet")
    with pytest.raises(UsageError, match="not a Parquet file"):
        Plan.from_bytes(b"PAR0")
    with pytest.raises(UsageError, match="nothing to plan"):
        Plan.from_catalog(Catalog((), tmp_path), TINY, 4)


def test_the_table_can_be_read_without_this_package(tmp_path: Path) -> None:
    (tmp_path / "plan.parquet").write_bytes(Plan.from_catalog(catalog(*range(6)), TINY, 4).to_bytes())
    table = pq.read_table(tmp_path / "plan.parquet", columns=["view_id", "shard"])
    assert table.to_pydict() == {"view_id": [0, 1, 2, 3, 4, 5], "shard": [0, 0, 0, 0, 1, 1]}


# ---- pixels


def test_a_view_renders_to_the_same_pixels_each_time(one_video: tuple[View, Path]) -> None:
    view, root = one_video
    one, two = render(view, root, 32), render(view, root, 32)
    assert one.pixels.shape == (8, 32, 32, 3)
    assert one.pixels.dtype == np.uint8
    assert pixel_hash(one.pixels) == pixel_hash(two.pixels)
    assert len(pixel_hash(one.pixels)) == 16


def test_rendering_is_crop_then_bilinear_resize_of_the_decoded_frames(one_video: tuple[View, Path]) -> None:
    view, root = one_video
    box = (view.crop.x, view.crop.y, view.crop.x + view.crop.w, view.crop.y + view.crop.h)
    frames = decode(root / view.path, view.frame_indices).frames
    expected = [np.asarray(Image.fromarray(f).crop(box).resize((32, 32), Image.Resampling.BILINEAR)) for f in frames]
    assert np.array_equal(render(view, root, 32).pixels, np.stack(expected))


def test_two_sizes_come_from_the_same_crop(one_video: tuple[View, Path]) -> None:
    view, root = one_video
    both = render_sizes(view, root, (32, 28))
    assert set(both) == {32, 28}
    for size, rendered in both.items():
        assert np.array_equal(rendered.pixels, render(view, root, size).pixels)


def test_a_flipped_view_is_the_mirror_image(one_video: tuple[View, Path]) -> None:
    view, root = one_video
    flipped = render(replace(view, flip=True), root, 32).pixels
    assert np.array_equal(flipped, render(view, root, 32).pixels[:, :, ::-1])
    assert pixel_hash(flipped) != pixel_hash(render(view, root, 32).pixels)


def test_either_reader_renders_the_same_view(one_video: tuple[View, Path]) -> None:
    view, root = one_video
    by_decord, by_pyav = (render(replace(view, decoder=reader), root, 32) for reader in ("decord", "pyav"))
    assert by_decord.decoder != by_pyav.decoder
    assert pixel_hash(by_decord.pixels) == pixel_hash(by_pyav.pixels)


def test_the_pixel_hash_is_that_of_the_bytes_in_c_order() -> None:
    pixels = np.arange(48, dtype=np.uint8).reshape(1, 4, 4, 3)
    assert pixel_hash(pixels) == "57433c648f7d24c9"  # xxh3_64 of the bytes 0 to 47
    assert pixel_hash(np.asfortranarray(pixels)) == pixel_hash(pixels)
    changed = pixels.copy()
    changed[0, 3, 3, 2] ^= 1
    assert pixel_hash(changed) != pixel_hash(pixels)


def test_a_file_whose_frames_changed_size_is_refused(one_video: tuple[View, Path]) -> None:
    view, root = one_video
    encode(root / "a.mp4", np.zeros((40, 64, 64, 3), np.uint8), 25)
    with pytest.raises(VideoError, match="were 88 x 64 when the videos were scanned: the file changed"):
        render(view, root, 32)


def test_a_file_that_is_gone_is_missing_and_named_relative_to_the_root(one_video: tuple[View, Path]) -> None:
    view, root = one_video
    (root / "a.mp4").unlink()
    with pytest.raises(VideoError, match=r"^a\.mp4: no such file$") as caught:
        render(view, root, 32)
    assert caught.value.status == "missing"


def test_a_crop_that_sticks_out_is_our_own_mistake(one_video: tuple[View, Path]) -> None:
    view, root = one_video
    with pytest.raises(ValueError, match="does not lie inside frames of 88 x 64"):
        render(replace(view, crop=CropBox(80, 0, 16, 16)), root, 32)
