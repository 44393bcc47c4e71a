"""The plan is a pure function of catalog, view section and seed; a view has one set of pixels."""

from __future__ import annotations

from dataclasses import replace
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


@settings(max_examples=25)
@given(
    st.sets(st.integers(0, 99), min_size=1, max_size=12),
    st.sets(st.integers(0, 99), max_size=12),
    st.integers(1, 9),
    st.integers(1, 3),
    st.integers(0, 3),
)
def test_adding_videos_never_changes_existing_views(
    first: set[int], more: set[int], rows_per_shard: int, groups: int, seed: int
) -> None:
    section = TINY.model_copy(update={"groups": groups, "seed": seed})
    small = Plan.from_catalog(catalog(*first), section, rows_per_shard)
    large = Plan.from_catalog(catalog(*(first | more)), section, rows_per_shard)
    views = {(view.video_id, view.group): essence(view) for view in large}
    assert all(essence(view) == views[view.video_id, view.group] for view in small)
    order = [view.video_id for view in small]
    assert order == [view.video_id for view in large if view.video_id in set(order)]


@settings(max_examples=25)
@given(st.integers(1, 30), st.integers(1, 9), st.integers(1, 4))
def test_a_group_starts_at_a_shard_boundary_and_holds_each_video_once(videos: int, rows: int, groups: int) -> None:
    plan = Plan.from_catalog(catalog(*range(videos)), TINY.model_copy(update={"groups": groups}), rows)
    assert len(plan) == videos * groups == len(plan.view_ids)
    assert plan.rows == plan.shard_count * rows == groups * -(-videos // rows) * rows
    seen = []
    for group in range(groups):
        views = [plan[view_id] for shard in plan.shards(group) for view_id in plan.shard_view_ids(shard)]
        assert {view.group for view in views} == {group}
        assert len({view.video_id for view in views}) == videos == len(views)
        assert [view.view_id for view in views] == [group * plan.rows // groups + i for i in range(videos)]
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
