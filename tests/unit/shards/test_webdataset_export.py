"""Self-contained webdataset shards: what a stranger's pipeline finds in them, and what stops an export."""

from __future__ import annotations

import dataclasses
import io
import json
import shutil
import signal
import subprocess
import sys
import tarfile
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import webdataset as wds
from PIL import Image
from PIL.JpegImagePlugin import get_sampling
from small_stores import DECODER, PRODUCER, column_of, features_of, files_of, header_of

from mvd_offline.cli.main import main
from mvd_offline.errors import MvdError, PixelMismatchError, UsageError
from mvd_offline.local import Local, write_local
from mvd_offline.recipe import ViewSection
from mvd_offline.shards import CorruptionError, IdentityError, Store, create_store, open_store
from mvd_offline.shards.schema import open_document
from mvd_offline.video.catalog import Catalog
from mvd_offline.video.synthetic import encode
from mvd_offline.video.views import Plan, pixel_hash, render
from mvd_offline.webdataset_export import export_webdataset

SIZE = 32


def make_store(folder: Path, known_videos: Any, names: tuple[str, ...] = ("image", "video")) -> Store:
    """Ten videos in five shards, and their store; some rows failed in both columns, one in the last column only.

    The third shard has no row with a target.
    """
    (folder / "videos").mkdir(parents=True)
    videos = []
    for number in range(10):
        video = known_videos.disc if number % 2 else known_videos.ramp
        shutil.copy(known_videos.root / video.path, folder / "videos" / f"{number}.mp4")
        videos.append(dataclasses.replace(video, video_id=f"{number}.mp4", path=f"{number}.mp4", label=number % 2))
    videos[9] = dataclasses.replace(videos[9], status="unreadable", detail="Invalid data", decoder="", frames=0)
    catalog = Catalog(tuple(videos), folder / "videos", ("ramp", "disc"))
    plan = Plan.from_catalog(catalog, ViewSection(frames=4, stride=2, image_size=SIZE), 2)
    columns = [column_of(name, codec="float16" if name == "image" else "int8") for name in names]
    header = header_of(plan.to_bytes(), columns, rows=plan.rows, rows_per_shard=2)
    store = create_store(folder / "store", header, plan.to_bytes())
    for column in columns:
        for shard in range(store.shard_count):
            with store.write_shard(column.name, shard, producer=PRODUCER) as writer:
                for view_id in store.shard_view_ids(shard).tolist():
                    view = plan[view_id]
                    if view.status != "ok":
                        writer.fail(view_id, view.status, view.detail)
                    elif shard == 2 or (view_id == 1 and column.name == names[-1]):
                        writer.fail(view_id, "timeout", "stopped after 60 s")
                    else:
                        pixels = pixel_hash(render(view, catalog.root, SIZE).pixels)
                        writer.add(view_id, features_of(view_id, column), pixels=pixels, decoder=DECODER)
    store.seal()
    write_local(store.root, Local(catalog.root))
    return open_store(store.root)


@pytest.fixture(scope="module")
def store(known_videos: Any, tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Tests only read it."""
    return make_store(tmp_path_factory.mktemp("exported"), known_videos)


@pytest.fixture(scope="module")
def exported(store: Store, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With arrays of frames. Tests only read it."""
    out = tmp_path_factory.mktemp("out") / "wds"
    export_webdataset(store.root, out, quiet=True)
    return out


def samples(folder: Path, *decoders: str) -> dict[int, dict[str, Any]]:
    """What webdataset itself makes of the tars, by view."""
    shards = sorted(str(path) for path in folder.glob("*.tar"))
    return {int(sample["__key__"]): sample for sample in wds.WebDataset(shards, shardshuffle=False).decode(*decoders)}


def fields_of(sample: dict[str, Any]) -> set[str]:
    return {name for name in sample if not name.startswith("__")}


# ---- what is in the tars -----------------------------------------------------------------------------------------


def test_plain_webdataset_finds_frames_targets_and_view(store: Store, exported: Path) -> None:
    found, plan = samples(exported), Plan.read(store.plan_path)
    assert list(found) == store.ok_rows().tolist()
    root = store.root.parent / "videos"
    for view_id, sample in found.items():
        assert fields_of(sample) == {"frames.npy", "image.npy", "video.npy", "view.json"}
        np.testing.assert_array_equal(sample["frames.npy"], render(plan[view_id], root, SIZE).pixels)
        for column, dtype in (("image", np.float16), ("video", np.float32)):
            assert sample[f"{column}.npy"].dtype == dtype
            np.testing.assert_array_equal(sample[f"{column}.npy"], store.read([view_id])[column][0])


def test_the_view_says_all_about_the_clip(store: Store, exported: Path) -> None:
    view_id, sample = next(iter(samples(exported).items()))
    view = Plan.read(store.plan_path)[view_id]
    said = sample["view.json"]
    assert said["crop"] == dataclasses.asdict(view.crop)
    assert said["frame_indices"] == list(view.frame_indices)
    names = ("view_id", "video_id", "path", "label", "group", "flip", "width", "height", "frames", "shard")
    assert {name: said[name] for name in names} == {name: getattr(view, name) for name in names}
    assert said["label_name"] == ("ramp", "disc")[view.label]
    assert said["image_size"] == SIZE
    assert said["pixels"] == store.pixel_hash(view_id) == pixel_hash(sample["frames.npy"])
    assert said["decoder"] == DECODER
    assert said["statuses"] == {"image": "ok", "video": "ok"}
    assert said["relative_errors"] == {
        column: store.status(column).row(view_id).relative_error for column in ("image", "video")
    }


def test_views_without_all_targets_are_listed_with_the_reason(store: Store, exported: Path) -> None:
    lines = [json.loads(line) for line in (exported / "failed.jsonl").read_text().splitlines()]
    assert [line["view_id"] for line in lines] == sorted(set(store.view_ids.tolist()) - set(store.ok_rows().tolist()))
    by_view = {line["view_id"]: line for line in lines}
    assert by_view[1]["statuses"] == {"image": "ok", "video": "timeout"}
    assert by_view[1]["details"] == {"video": "stopped after 60 s"}
    (broken,) = [line for line in lines if line["video_id"] == "9.mp4"]
    assert broken["statuses"] == {"image": "unreadable", "video": "unreadable"}
    assert broken["details"]["image"] == "Invalid data"


def test_a_shard_without_samples_is_a_tar_without_members(exported: Path) -> None:
    with tarfile.open(exported / "000002.tar") as tar:
        assert tar.getmembers() == []
    assert list(wds.WebDataset(str(exported / "000002.tar"), shardshuffle=False, empty_check=False)) == []


def test_the_tars_hold_plain_sorted_timeless_files(exported: Path) -> None:
    for path in exported.glob("*.tar"):
        with tarfile.open(path) as tar:
            members = tar.getmembers()
        names = [member.name for member in members]
        assert names == sorted(names)
        assert all(name.partition(".")[0].isdigit() for name in names)
        assert {(m.mtime, m.uid, m.gid, m.uname, m.gname, m.mode) for m in members} <= {(0, 0, 0, "", "", 0o644)}


def test_each_tar_has_a_record_and_the_folder_says_what_it_is(store: Store, exported: Path) -> None:
    identity = open_document((exported / "export.json").read_bytes(), "export.json")
    assert (identity["format"], identity["store_id"]) == ("webdataset", store.store_id)
    assert identity["columns"]["video"]["source"] == store.header.columns["video"].source
    assert identity["rendering"] == {"frames": "npy", "image_size": SIZE, "classes": ["ramp", "disc"]}
    views = []
    for path in sorted(exported.glob("*.tar")):
        record = open_document(path.with_suffix(".json").read_bytes(), path.name)
        assert (record["file"], record["size"]) == (path.name, path.stat().st_size)
        views += record["view_ids"]
    assert views == store.ok_rows().tolist()


def test_frames_may_be_jpegs(store: Store, exported: Path, tmp_path: Path) -> None:
    export_webdataset(store.root, tmp_path / "jpg", frames="jpg", quiet=True)
    names = [f"frame{number:02d}.jpg" for number in range(4)]
    arrays = samples(exported)
    for view_id, sample in samples(tmp_path / "jpg", "rgb8").items():
        assert fields_of(sample) == {*names, "image.npy", "video.npy", "view.json"}
        for name, frame in zip(names, arrays[view_id]["frames.npy"], strict=True):
            assert np.abs(sample[name].astype(int) - frame).mean() < 4
    raw = next(iter(samples(tmp_path / "jpg").values()))["frame00.jpg"]
    assert get_sampling(Image.open(io.BytesIO(raw))) == 0  # 4:4:4


def test_without_frames_no_video_is_needed(store: Store, tmp_path: Path) -> None:
    copy = shutil.copytree(store.root, tmp_path / "store")
    (copy / "local.json").unlink()
    export_webdataset(copy, tmp_path / "out", columns=["image"], frames="none", quiet=True)
    found = samples(tmp_path / "out")
    assert list(found) == store.ok_rows(["image"]).tolist()
    assert {name for sample in found.values() for name in fields_of(sample)} == {"image.npy", "view.json"}


# ---- again, and after a kill -------------------------------------------------------------------------------------


def test_a_second_run_keeps_everything_and_another_folder_gets_the_same_bytes(
    store: Store, exported: Path, tmp_path: Path
) -> None:
    first = export_webdataset(store.root, tmp_path / "out", workers=2, quiet=True)
    before = {path.name: path.stat().st_ino for path in (tmp_path / "out").glob("*.tar")}
    again = export_webdataset(store.root, tmp_path / "out", quiet=True)
    assert (first.shards, first.shards_kept, first.rows, first.rows_without_target) == (5, 0, 6, 4)
    assert (again.shards, again.shards_kept, again.bytes_written) == (0, 5, 0)
    assert {path.name: path.stat().st_ino for path in (tmp_path / "out").glob("*.tar")} == before
    assert files_of(tmp_path / "out") == files_of(exported)


CHILD = """
    import os, signal
    from pathlib import Path
    from mvd_offline.webdataset_export import export_webdataset
    rename, left = os.rename, 4
    def rename_or_die(source, target):
        global left
        left -= 1
        if left < 0:
            os.kill(os.getpid(), signal.SIGKILL)
        rename(source, target)
    os.rename = rename_or_die
    export_webdataset(Path({store!r}), Path({out!r}), quiet=True)
"""


def test_an_export_that_was_killed_goes_on(store: Store, exported: Path, tmp_path: Path) -> None:
    # Killed between the second tar and its record.
    code = CHILD.format(store=str(store.root), out=str(tmp_path / "out"))
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], timeout=120, check=False)
    assert done.returncode == -signal.SIGKILL
    assert sorted(path.name for path in (tmp_path / "out").glob("[!.]*")) == [
        "000000.json", "000000.tar", "000001.tar", "export.json",
    ]  # fmt: skip
    assert export_webdataset(store.root, tmp_path / "out", quiet=True).shards_kept == 1
    assert files_of(tmp_path / "out") == files_of(exported)


# ---- what stops an export ----------------------------------------------------------------------------------------


@pytest.fixture
def harmed(store: Store, tmp_path: Path) -> Path:
    """A copy of the store and the videos, for a test that damages them."""
    shutil.copytree(store.root, tmp_path / "store")
    shutil.copytree(store.root.parent / "videos", tmp_path / "videos")
    write_local(tmp_path / "store", Local(tmp_path / "videos"))
    return tmp_path / "store"


def test_pixels_that_changed_stop_the_export_with_the_views_name(store: Store, harmed: Path, tmp_path: Path) -> None:
    view = Plan.read(store.plan_path)[int(store.ok_rows()[-1])]
    encode(tmp_path / "videos" / view.path, np.full((view.frames, view.height, view.width, 3), 77, np.uint8), 25)
    with pytest.raises(PixelMismatchError, match=f"view {view.view_id} of video {view.video_id} renders to other"):
        export_webdataset(harmed, tmp_path / "out", quiet=True)
    assert not (tmp_path / "out" / f"{view.shard:06d}.tar").exists()
    assert not list((tmp_path / "out").glob(".tmp-*"))
    # The targets themselves are as good as before.
    assert export_webdataset(harmed, tmp_path / "bare", frames="none", quiet=True).rows == 6


@pytest.mark.parametrize("stale", ["image", "video"])
def test_a_column_made_from_other_pixels_stops_the_export_of_it(harmed: Path, tmp_path: Path, stale: str) -> None:
    before = open_store(harmed)
    view = int(before.ok_rows()[0])
    shard = view // before.header.rows_per_shard
    record = before.record(stale, shard)
    with before.write_shard(stale, shard, producer=PRODUCER, replace=True) as writer:
        for row in record.rows:
            if row.status == "ok":
                features = features_of(row.view_id, before.header.columns[stale])
                writer.add(row.view_id, features, pixels="77" * 8, decoder="decord 0.5.2")
            else:
                writer.fail(row.view_id, row.status, row.detail)
    before.seal()

    for frames in ("npy", "none"):
        with pytest.raises(
            CorruptionError, match=f"view {view} come from different pixels.*{'77' * 8} with decord 0.5.2"
        ):
            export_webdataset(harmed, tmp_path / frames, frames=frames, quiet=True)
    with pytest.raises(PixelMismatchError, match=f"view {view} of video .* {'77' * 8} with decord 0.5.2 at extraction"):
        export_webdataset(harmed, tmp_path / "stale", columns=[stale], quiet=True)
    (other,) = {"image", "video"} - {stale}
    assert export_webdataset(harmed, tmp_path / "other", columns=[other], quiet=True).rows >= 6


def test_a_video_that_is_gone_stops_the_export_with_the_views_name(store: Store, harmed: Path, tmp_path: Path) -> None:
    view = Plan.read(store.plan_path)[int(store.ok_rows()[0])]
    (tmp_path / "videos" / view.path).unlink()
    with pytest.raises(MvdError, match=f"view {view.view_id} has targets, but cannot be rendered any more.*no such"):
        export_webdataset(harmed, tmp_path / "out", quiet=True)
    assert not list((tmp_path / "out").glob("*.tar"))


def test_another_export_in_the_folder_is_refused(store: Store, exported: Path) -> None:
    before = files_of(exported)
    with pytest.raises(IdentityError, match=r"rendering\.frames: this export has 'none', the folder has 'npy'"):
        export_webdataset(store.root, exported, frames="none", quiet=True)
    with pytest.raises(IdentityError, match="holds another export"):
        export_webdataset(store.root, exported, columns=["video"], quiet=True)
    assert files_of(exported) == before
    with pytest.raises(IdentityError, match="lies inside the store"):
        export_webdataset(store.root, store.root / "wds", quiet=True)


def test_a_column_called_frames_needs_another_form_of_frames(known_videos: Any, tmp_path: Path) -> None:
    store = make_store(tmp_path, known_videos, ("frames",))
    with pytest.raises(UsageError, match="--frames jpg"):
        export_webdataset(store.root, tmp_path / "out", quiet=True)
    export_webdataset(store.root, tmp_path / "out", frames="none", quiet=True)
    assert fields_of(next(iter(samples(tmp_path / "out").values()))) == {"frames.npy", "view.json"}


# ---- the command -------------------------------------------------------------------------------------------------


def test_the_command_exports_and_counts(store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["shards", "export", str(store.root), "--webdataset", "--out", str(tmp_path / "out"), "--frames", "none"]
    assert main(words) == 0
    captured = capsys.readouterr()
    assert "6 rows in 5 shard files" in captured.out
    assert "4 rows have no target" in captured.out
    assert "export: 6/6 views" in captured.err
    assert main([*words, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["shards_kept"] == 5
