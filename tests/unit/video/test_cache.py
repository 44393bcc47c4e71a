"""A decode cache: every frame kept under its number, read back before it counts, nothing left out in silence."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from small_runs import contents, hanging

from mvd_offline.cli.main import main
from mvd_offline.errors import UsageError, VideoError
from mvd_offline.randomness import KeyedStream
from mvd_offline.training.catalogs import CatalogRows
from mvd_offline.video.cache import Cache, open_cache, write_cache
from mvd_offline.video.cache_check import Finding, verify_cache
from mvd_offline.video.cache_ledger import finish
from mvd_offline.video.cache_timing import time_clips
from mvd_offline.video.catalog import Catalog, Video, scan
from mvd_offline.video.decode import decode, probe
from mvd_offline.video.files import file_sha256
from mvd_offline.video.render import pixel_hash
from mvd_offline.video.synthetic import draw_frames, encode
from mvd_offline.video.transcode import EQUAL_PSNR, Format, Settings, hash_of_frames, transcode

SMALL = Settings.checked(short_side=32)


def cached(catalog: Catalog, folder: Path, settings: Settings = SMALL, seconds: float = 300.0) -> Cache:
    return write_cache(catalog, folder, settings, workers=1, timeout_seconds=seconds)


def findings(folder: Path) -> list[Finding]:
    return list(verify_cache(folder, workers=1, timeout_seconds=300))


def draw(path: Path, count: int, width: int = 64, height: int = 48, seed: int = 1) -> None:
    """A video of which no two frames are alike: a bar moves by two pixels each."""
    path.parent.mkdir(exist_ok=True)
    frames = draw_frames(width, height, count, "checks", "left", KeyedStream(seed))
    for number, frame in enumerate(frames):
        frame[:, 2 * number % width :][:, :2] = 255
    encode(path, frames, 25)


def listed(root: Path, *names: str) -> Catalog:
    """As a scan lists them, without its processes."""
    rows = []
    for name in names:
        info, sha256 = probe(root / name), file_sha256(root / name)
        rows.append(
            Video(name, name, 0, "", **vars(info), size=(root / name).stat().st_size, mtime_ns=0, sha256=sha256,
                  status="ok", detail="")
        )  # fmt: skip
    return Catalog(tuple(rows), root)


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> Catalog:
    """Two classes, a video each of another shape, and a file that is none."""
    root = tmp_path_factory.mktemp("originals")
    draw(root / "left" / "a.mp4", 30)
    draw(root / "right" / "b.avi.mp4", 21, width=48, height=96)
    (root / "left" / "broken.mp4").write_bytes(b"not a video")
    return scan(root, workers=1)


@pytest.fixture(scope="module")
def made(originals: Catalog, tmp_path_factory: pytest.TempPathFactory) -> Cache:
    """A cache of them that tests only read."""
    return cached(originals, tmp_path_factory.mktemp("made") / "cache")


@pytest.fixture
def fresh(originals: Catalog, made: Cache, tmp_path: Path) -> Cache:
    """One that a test may spoil."""
    shutil.copytree(made.folder, tmp_path / "cache")
    return cached(originals, tmp_path / "cache")  # there is nothing left to write but the catalog


# ---- one video ---------------------------------------------------------------------------------------------------


def test_frames_are_shrunk_to_the_short_side_never_enlarged_and_even() -> None:
    settings = Settings.checked(short_side=256)
    assert settings.size(640, 360) == (456, 256)
    assert settings.size(360, 640) == (256, 456)
    assert settings.size(340, 256) == (340, 256)
    assert settings.size(161, 121) == (160, 120)


def test_settings_that_cannot_be_are_refused_with_what_is_allowed() -> None:
    with pytest.raises(UsageError, match="format 'png' is unknown; allowed: jpeg, h264"):
        Settings.checked("png")
    with pytest.raises(UsageError, match=r"quality is 0; allowed for jpeg: 1 \(finest\) to 31"):
        Settings.checked("jpeg", quality=0)
    with pytest.raises(UsageError, match="short_side is 8"):
        Settings.checked(short_side=8)


@pytest.mark.parametrize("form", ["jpeg", "h264"])
def test_every_frame_is_kept_under_its_number(form: Format, originals: Catalog, tmp_path: Path) -> None:
    video = originals.by_id["left/a.mp4"]
    source = originals.root / video.path
    written = transcode(video, source, tmp_path / "a.mp4", Settings.checked(form, 48))
    back = decode(tmp_path / "a.mp4", range(30), reader=written.reader)
    reference = decode(source, range(30)).frames.astype(np.int16)
    nearest = [int(np.abs(reference - frame).mean((1, 2, 3)).argmin()) for frame in back.frames]
    assert nearest == list(range(30))
    assert (written.frames, written.width, written.height, written.fps) == (30, 64, 48, 25.0)
    assert written.decoder == back.decoder
    assert written.pixels == pixel_hash(back.frames)
    assert 30 < written.psnr_db < EQUAL_PSNR


def test_a_finer_quality_is_nearer_to_the_original(originals: Catalog, tmp_path: Path) -> None:
    video = originals.by_id["right/b.avi.mp4"]
    source = originals.root / video.path
    for form, qualities in (("jpeg", (1, 3, 12)), ("h264", (6, 16, 30))):
        written = [
            transcode(video, source, tmp_path / f"{form}{quality}", Settings.checked(form, 48, quality))
            for quality in qualities
        ]
        assert sorted(written, key=lambda w: -w.psnr_db) == sorted(written, key=lambda w: -w.size) == written


def test_real_videos_keep_their_frames_even_turned_or_hard_to_seek(shared_clips: Path, tmp_path: Path) -> None:
    names = ("rotated_three_frames.mov", "ten_frames_h265.mp4", "corrupted.mp4")
    (tmp_path / "originals").mkdir()
    for name in names:
        (tmp_path / "originals" / name).symlink_to(shared_clips / name)
    source = scan(tmp_path / "originals", workers=1)
    cache = cached(source, tmp_path / "cache", Settings.checked(short_side=256, quality=1))
    rotated, ten = cache.rows
    assert (rotated.frames, rotated.width, rotated.height) == (3, 256, 454)
    assert (ten.frames, ten.width, ten.height) == (10, 128, 128)
    assert min(rotated.psnr_db, ten.psnr_db) > 33
    assert Catalog.read(cache.catalog_path).by_id["corrupted.mp4"].status == "unreadable"


def test_a_file_other_than_the_scanned_one_is_not_written(originals: Catalog, tmp_path: Path) -> None:
    video = originals.by_id["left/a.mp4"]
    other = originals.root / "right/b.avi.mp4"
    with pytest.raises(VideoError, match="not the one that was scanned"):
        transcode(video, other, tmp_path / "a.mp4", SMALL)
    with pytest.raises(VideoError, match=r"frame 0: the frame has 48 x 96 pixels, and the scan saw 64 x 48"):
        transcode(replace(video, sha256=file_sha256(other)), other, tmp_path / "a.mp4", SMALL)
    wrong = replace(originals.by_id["right/b.avi.mp4"], frames=20)
    with pytest.raises(VideoError, match="21 frames come out, and the scan counted 20"):
        transcode(wrong, other, tmp_path / "b.mp4", SMALL)
    assert list(tmp_path.iterdir()) == []


# ---- a catalog ---------------------------------------------------------------------------------------------------


def test_the_new_catalog_has_the_same_videos_and_labels_and_names_readable_files(
    originals: Catalog, made: Cache
) -> None:
    new = Catalog.read(made.catalog_path)
    assert [(v.video_id, v.label, v.label_name) for v in new.videos] == [
        (v.video_id, v.label, v.label_name) for v in originals.videos
    ]
    assert new.classes == originals.classes
    for video in new.videos:
        source = originals.by_id[video.video_id]
        assert (video.status, video.frames) == (source.status, source.frames)
        if video.status == "ok":
            path = new.root / video.path
            assert (video.size, video.sha256) == (path.stat().st_size, file_sha256(path))
            frames = decode(path, range(video.frames), reader=video.reader).frames
            assert frames.shape[1:3] == (video.height, video.width)
            assert min(video.height, video.width) == 32
    assert new.by_id["left/broken.mp4"].detail == originals.by_id["left/broken.mp4"].detail != ""


def test_the_ledger_has_the_hash_of_the_pixels(made: Cache) -> None:
    rows = open_cache(made.folder).rows
    assert rows == made.rows
    assert [row.video_id for row in rows] == ["left/a.mp4", "right/b.avi.mp4"]
    for row in rows:
        assert hash_of_frames(made.videos / row.path, row.frames, None) == row.pixels
        assert row.psnr_db > 25


def test_nothing_that_was_made_from_the_originals_fits_the_cache(originals: Catalog, made: Cache) -> None:
    new = Catalog.read(made.catalog_path)
    assert not {video.path for video in new.videos if video.status == "ok"} & {v.path for v in originals.videos}
    originals.write(made.folder.parent / "originals.parquet")
    assert CatalogRows(made.catalog_path).source != CatalogRows(made.folder.parent / "originals.parquet").source


def test_a_second_run_writes_only_what_is_missing(originals: Catalog, fresh: Cache) -> None:
    before, files = contents(fresh.folder), [fresh.videos / row.path for row in fresh.rows]
    kept = files[1].stat().st_ino
    files[0].unlink()
    assert cached(originals, fresh.folder) == fresh
    assert contents(fresh.folder) == before
    assert files[1].stat().st_ino == kept


def test_a_video_that_changed_is_written_again_and_one_that_is_new_is_added(tmp_path: Path) -> None:
    root = tmp_path / "originals"
    draw(root / "a.mp4", 12)
    before = cached(listed(root, "a.mp4"), tmp_path / "cache").rows
    draw(root / "a.mp4", 14, seed=2)
    draw(root / "b.mp4", 12)
    after = cached(listed(root, "a.mp4", "b.mp4"), tmp_path / "cache").rows
    assert [row.frames for row in before] == [12]
    assert [row.frames for row in after] == [14, 12]
    assert after[1].pixels == before[0].pixels
    assert findings(tmp_path / "cache") == []


def test_what_fails_is_a_status_in_the_new_catalog_and_its_file_is_gone(tmp_path: Path) -> None:
    root, folder = tmp_path / "originals", tmp_path / "cache"
    draw(root / "a.mp4", 12)
    draw(root / "b.mp4", 12)
    catalog = listed(root, "a.mp4", "b.mp4")
    cached(catalog, folder)
    (root / "a.mp4").write_bytes((root / "a.mp4").read_bytes() + b"\0")
    stale = replace(catalog.by_id["a.mp4"], sha256="0" * 64)
    cache = cached(replace(catalog, videos=(stale, catalog.by_id["b.mp4"])), folder)
    row = Catalog.read(cache.catalog_path).by_id["a.mp4"]
    assert (row.status, row.reader, row.frames) == ("unreadable", None, 0)
    assert "not the one that was scanned" in row.detail
    assert [path.name for path in cache.videos.iterdir()] == ["b.mp4.jpeg.mp4"]
    assert findings(folder) == []


def test_a_video_that_hangs_times_out_and_is_tried_again(tmp_path: Path) -> None:
    path = tmp_path / "originals" / "a.mp4"
    draw(path, 12)
    catalog = listed(path.parent, path.name)
    with hanging(path):
        (row,) = cached(catalog, tmp_path / "cache", seconds=1.0).rows
    assert (row.status, row.detail) == ("timeout", "decoding took longer than 1 s and was stopped")
    (row,) = cached(catalog, tmp_path / "cache").rows
    assert row.ok


def test_lines_that_a_kill_cut_off_are_written_again(originals: Catalog, fresh: Cache) -> None:
    before, line = contents(fresh.folder), json.dumps({"video_id": "left/a.mp4"})
    (fresh.folder / "ledger.parquet").unlink()
    (fresh.folder / "progress.jsonl").write_text(f'{line}\n["no row"]\n{line[:9]}')
    with pytest.raises(UsageError, match="is not finished"):
        open_cache(fresh.folder)
    cached(originals, fresh.folder)
    assert contents(fresh.folder) == before


def test_another_folder_or_other_settings_are_refused(originals: Catalog, made: Cache, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="holds a cache with format jpeg, not h264, quality 3, not 16"):
        cached(originals, made.folder, Settings.checked("h264", 32))
    (tmp_path / "mine.txt").touch()
    with pytest.raises(UsageError, match=r"holds other things already, such as mine.txt"):
        cached(originals, tmp_path)
    with pytest.raises(UsageError, match="holds no decode cache"):
        open_cache(tmp_path)


def test_images_and_catalogs_without_a_readable_video_are_refused(originals: Catalog, tmp_path: Path) -> None:
    broken = originals.by_id["left/broken.mp4"]
    with pytest.raises(UsageError, match="no readable video among 1"):
        cached(replace(originals, videos=(broken,)), tmp_path / "cache")
    image = replace(originals.by_id["left/a.mp4"], decoder="pillow")
    with pytest.raises(UsageError, match=r"1 images, such as left/a.mp4"):
        cached(replace(originals, videos=(image,)), tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


def test_clips_are_timed_on_both_in_turn(originals: Catalog, made: Cache) -> None:
    times = time_clips(originals, made, videos=2, repeats=1)
    assert times.videos == 2
    assert min(times.original_ms, times.cached_ms) > 0
    middle, low, high = times.speedup
    assert low <= middle <= high


# ---- checking ----------------------------------------------------------------------------------------------------


def test_one_finding_is_not_several(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = [Finding("videos/a.mp4", "missing"), Finding("videos/b.mp4", "missing")]
    for count, words in ((1, "\n1 finding. Remove"), (2, "\n2 findings. Remove")):
        monkeypatch.setattr("mvd_offline.video.cache_check.verify_cache", lambda *args, n=count, **options: found[:n])
        assert main(["videos", "verify", str(tmp_path)]) == 1
        assert words in capsys.readouterr().out


def test_a_cache_as_it_was_written_has_no_findings(made: Cache) -> None:
    assert findings(made.folder) == []


def test_changed_missing_and_foreign_files_are_found_and_repaired_by_another_run(
    originals: Catalog, fresh: Cache
) -> None:
    before = contents(fresh.folder)
    changed, missing = (fresh.videos / row.path for row in fresh.rows)
    content = bytearray(changed.read_bytes())
    content[len(content) // 2] ^= 1
    changed.write_bytes(content)
    missing.unlink()
    (fresh.videos / "stray.mp4").touch()
    found = findings(fresh.folder)
    assert [(finding.path, finding.what.partition(":")[0]) for finding in found] == [
        ("videos/left/a.mp4.jpeg.mp4", "changed"),
        ("videos/right/b.avi.mp4.jpeg.mp4", "missing"),
        ("videos/stray.mp4", "foreign"),
    ]
    for path in (changed, fresh.videos / "stray.mp4"):
        path.unlink()
    cached(originals, fresh.folder)
    assert contents(fresh.folder) == before
    assert findings(fresh.folder) == []


def test_a_decoder_that_gives_other_pixels_is_named(fresh: Cache) -> None:
    rows = list(fresh.rows)
    rows[0] = replace(rows[0], pixels="0" * 16, decoder="pyav 1.0")
    finish(fresh.folder, rows)
    (found,) = findings(fresh.folder)
    assert found.path == f"videos/{rows[0].path}"
    assert "0000000000000000 with pyav 1.0 when it was written" in found.what


@contextmanager
def changed_catalog(cache: Cache, **changes: object) -> Iterator[None]:
    catalog = Catalog.read(cache.catalog_path)
    video = replace(catalog.by_id["left/a.mp4"], **changes)  # type: ignore[arg-type]
    others: tuple[Video, ...] = tuple(v for v in catalog.videos if v.video_id != video.video_id)
    Catalog((video, *others), catalog.root, catalog.classes).write(cache.catalog_path)
    yield
    catalog.write(cache.catalog_path)


def test_a_catalog_that_is_not_the_ledgers_is_found(fresh: Cache, tmp_path: Path) -> None:
    with changed_catalog(fresh, frames=29):
        (found,) = findings(fresh.folder)
        assert (found.path, found.what[:7]) == ("catalog.parquet", "changed")
    moved = fresh.folder.rename(tmp_path / "moved")
    (found,) = findings(moved)
    assert "the cache was moved" in found.what
