"""Frames by number: exact, whoever reads them; errors that say what and where."""

from __future__ import annotations

import os
import pickle  # noqa: TID251 - errors cross process boundaries this way
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from mvd_offline.errors import VideoError
from mvd_offline.randomness import KeyedStream
from mvd_offline.video import decode as decode_module
from mvd_offline.video.decode import Reader, clean_reason, decode, decoder_version, probe
from mvd_offline.video.packets import read_packet_index
from mvd_offline.video.pyav_reader import _frames_after_seek, _frames_from_start
from mvd_offline.video.synthetic import draw_frames, encode

READABLE = {
    "arm_wrestling.mp4": (280, 340, 256, "decord"),
    "av1.mkv": (125, 640, 360, "pyav"),
    "flipping_a_pancake.mkv": (310, 426, 240, "decord"),
    "nasa.mp4": (390, 480, 270, "decord"),
    "old_codec.avi": (164, 320, 240, "pyav"),
    "rotated_three_frames.mov": (3, 320, 568, "decord"),
    "ten_frames_h265.mp4": (10, 128, 128, "pyav"),
}

OPEN_GROUPS = "open-gop=1:keyint=12:scenecut=0:b-adapt=0"


def sequential(path: Path) -> np.ndarray:
    """Every frame from first to last, by PyAV: the reference for random access."""
    with av.open(str(path)) as container:
        frames = list(container.decode(container.streams.best("video")))
    return np.stack([np.rot90(f.to_ndarray(format="rgb24"), round(f.rotation / 90)) for f in frames])


def noise(count: int, height: int = 32, width: int = 64) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize("name", READABLE)
def test_a_real_clip_is_probed_as_it_decodes(name: str, shared_clips: Path) -> None:
    info = probe(shared_clips / name)
    assert (info.frames, info.width, info.height, info.decoder) == READABLE[name]


@pytest.mark.parametrize("name", READABLE)
def test_random_access_to_a_real_clip_equals_reading_it_from_the_start(name: str, shared_clips: Path) -> None:
    path = shared_clips / name
    reference = sequential(path)
    draws = np.random.default_rng(1)
    for _ in range(3):
        indices = sorted(draws.integers(0, len(reference), 6).tolist())
        assert np.array_equal(decode(path, indices).frames, reference[indices])


def test_random_access_to_synthetic_videos_equals_reading_them_from_the_start(synthetic_videos: Path) -> None:
    for path in sorted(synthetic_videos.rglob("*.mp4"))[::2]:
        reference = sequential(path)
        assert probe(path).frames == len(reference)
        for index in range(0, len(reference), 5):
            assert np.array_equal(decode(path, [index]).frames[0], reference[index])


@pytest.mark.parametrize("name", [name for name in READABLE if READABLE[name][3] == "decord"])
def test_both_readers_give_the_same_pixels_of_a_real_clip(name: str, shared_clips: Path) -> None:
    indices = [0, 1, 2] if READABLE[name][0] == 3 else [0, 7, 40, 100, READABLE[name][0] - 1]
    by_decord, by_pyav = (decode(shared_clips / name, indices, reader=reader) for reader in ("decord", "pyav"))
    assert by_decord.decoder == decoder_version("decord")
    assert by_pyav.decoder == decoder_version("pyav")
    assert np.array_equal(by_decord.frames, by_pyav.frames)


def test_both_readers_give_the_same_pixels_of_synthetic_videos(synthetic_videos: Path) -> None:
    compared = 0
    for path in sorted(synthetic_videos.rglob("*.mp4")):
        by_decord, by_pyav = (decode(path, [0, 9, 29], reader=reader) for reader in ("decord", "pyav"))
        compared += by_decord.decoder == decoder_version("decord")
        assert np.array_equal(by_decord.frames, by_pyav.frames)
    assert compared >= 8


CONTAINERS = {
    "closed groups in mp4": ("a.mp4", "libx264", {"g": "12", "bf": "2"}, "decord"),
    "open groups in mkv": ("a.mkv", "libx264", {"bf": "2", "x264-params": OPEN_GROUPS}, "pyav"),
    "open groups in mp4": ("a.mp4", "mpeg4", {"g": "12", "bf": "2"}, "pyav"),
    "plain avi": ("a.avi", "mpeg4", {"g": "12", "bf": "0"}, "pyav"),
    "avi with reordered frames": ("a.avi", "mpeg4", {"g": "12", "bf": "2"}, "pyav"),
    "avi with h264": ("a.avi", "libx264", {"g": "12", "bf": "2"}, "pyav"),
    "mpeg program stream": ("a.mpg", "mpeg2video", {"g": "12", "bf": "2"}, "pyav"),
    "mpeg transport stream": ("a.ts", "libx264", {"g": "12", "bf": "2"}, "pyav"),
    "vp9 in webm": ("a.webm", "libvpx-vp9", {"g": "12", "deadline": "realtime", "cpu-used": "8"}, "decord"),
}


@pytest.mark.parametrize("case", CONTAINERS)
def test_frames_have_the_same_number_in_every_container(case: str, tmp_path: Path) -> None:
    name, codec, options, reader = CONTAINERS[case]
    path = tmp_path / name
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25, options=options | {"threads": "1"})
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
        for frame in draw_frames(64, 48, 40, "checks", "left", KeyedStream(case)):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))
    reference = sequential(path)
    assert probe(path).decoder == reader
    assert probe(path).frames == len(reference) == 40
    for index in range(0, 40, 3):
        assert np.array_equal(decode(path, [index]).frames[0], reference[index]), index
        assert np.array_equal(decode(path, [index], reader="pyav").frames[0], reference[index]), index


def test_frames_cut_away_by_an_edit_list_are_not_counted(tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole.mp4", tmp_path / "cut.mp4"
    encode(whole, noise(60), 25)
    with av.open(str(whole)) as source, av.open(str(cut), "w") as target:
        stream = source.streams.video[0]
        copy = target.add_stream_from_template(stream)
        for packet in source.demux(stream):
            if packet.size and packet.pts is not None:
                shift = round(Fraction(10, 25) / packet.time_base)
                packet.pts, packet.dts = packet.pts - shift, packet.dts - shift
                packet.stream = copy
                target.mux(packet)
    reference = sequential(cut)
    assert 0 < len(reference) < 60
    assert probe(cut).frames == len(reference)
    assert np.array_equal(decode(cut, [0, 20, len(reference) - 1]).frames, reference[[0, 20, -1]])


def test_packets_that_show_no_frame_are_not_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.mp4"
    encode(path, noise(30), 25)
    index = read_packet_index(path)
    monkeypatch.setattr(decode_module, "read_packet_index", lambda path: replace(index, frames=index.frames + 2))
    assert probe(path).frames == 30


@pytest.mark.parametrize("name", READABLE)
def test_pyav_seeks_to_the_frames_that_it_would_have_counted_to(name: str, shared_clips: Path) -> None:
    path, last = shared_clips / name, READABLE[name][0] - 1
    by_seek, by_count = list(_frames_after_seek(path, last)), list(_frames_from_start(path))
    assert by_count[-1][0] == last
    if name == "old_codec.avi":
        assert by_seek == []  # it has no timestamps to seek by
        return
    assert [number for number, _ in by_seek] == list(range(by_seek[0][0], last + 1))
    for (number, after_seek), (_, counted) in list(zip(by_seek[::-1], by_count[::-1], strict=False))[:3]:
        assert np.array_equal(after_seek.to_ndarray(format="rgb24"), counted.to_ndarray(format="rgb24")), number


def test_the_order_asked_for_is_kept_and_repeats_are_copies(synthetic_videos: Path) -> None:
    path = next(synthetic_videos.rglob("*.mp4"))
    once = decode(path, range(12)).frames
    mixed = decode(path, [9, 3, 3, 11, 0]).frames
    assert np.array_equal(mixed, once[[9, 3, 3, 11, 0]])


def test_a_rotated_clip_comes_out_upright_from_both_readers(shared_clips: Path) -> None:
    for reader in ("decord", "pyav"):
        assert decode(shared_clips / "rotated_three_frames.mov", [0], reader=reader).frames.shape == (1, 568, 320, 3)


def test_a_file_that_changed_is_indexed_again(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    encode(path, noise(10), 25)
    assert probe(path).frames == 10
    encode(path, noise(20), 25)
    assert probe(path).frames == 20


def test_a_damaged_clip_names_file_frame_and_both_decoders(shared_clips: Path) -> None:
    with pytest.raises(VideoError, match=r"corrupted\.mp4, frame \d+: decord: .*; pyav: Invalid data") as caught:
        probe(shared_clips / "corrupted.mp4")
    assert caught.value.status == "unreadable"
    assert caught.value.decoder == f"{decoder_version('decord')}, {decoder_version('pyav')}"
    assert str(shared_clips) not in caught.value.reason
    assert "github" not in caught.value.reason


def test_what_decord_cannot_decode_is_read_by_pyav(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.mp4"
    encode(path, noise(10), 25)
    expected = decode(path, [0, 9])
    assert expected.decoder == decoder_version("decord")

    def fails(path: Path, wanted: object) -> VideoError:
        return VideoError(str(path), "broken", decoder=decoder_version("decord"))

    monkeypatch.setattr(decode_module, "_decode_with_decord", fails)
    instead = decode(path, [0, 9])
    assert instead.decoder == decoder_version("pyav")
    assert np.array_equal(instead.frames, expected.frames)


@pytest.mark.parametrize("reader", ["decord", "pyav", None])
def test_a_frame_beyond_the_end_is_an_error(reader: Reader | None, tmp_path: Path) -> None:
    encode(tmp_path / "a.mp4", noise(10), 25)
    with pytest.raises(VideoError, match=r"frame 10: .*the video ends before this frame"):
        decode(tmp_path / "a.mp4", [0, 10], reader=reader)


def test_a_missing_file_has_the_status_missing(tmp_path: Path) -> None:
    with pytest.raises(VideoError, match="no such file") as caught:
        probe(tmp_path / "none.mp4")
    assert caught.value.status == "missing"


@pytest.mark.parametrize("content", [b"", b"not a video at all" * 100], ids=["empty", "text"])
def test_a_file_that_is_no_video_is_unreadable(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(content)
    with pytest.raises(VideoError) as caught:
        probe(tmp_path / "a.mp4")
    assert caught.value.status == "unreadable"
    assert str(tmp_path) not in caught.value.reason


def test_a_truncated_video_is_unreadable(tmp_path: Path) -> None:
    encode(tmp_path / "a.mp4", noise(30), 25)
    data = (tmp_path / "a.mp4").read_bytes()
    (tmp_path / "a.mp4").write_bytes(data[: len(data) // 2])
    with pytest.raises(VideoError):
        probe(tmp_path / "a.mp4")


def test_a_pipe_or_folder_is_refused_without_opening_it(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.mp4")
    (tmp_path / "folder.mp4").mkdir()
    for name in ("pipe.mp4", "folder.mp4"):
        with pytest.raises(VideoError, match="not a regular file"):
            probe(tmp_path / name)


def test_a_file_without_a_video_stream_says_so(tmp_path: Path) -> None:
    path = tmp_path / "sound.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=16000, layout="mono")
        samples = av.AudioFrame.from_ndarray(np.zeros((1, 4096), np.float32), format="fltp", layout="mono")
        samples.sample_rate = 16000
        container.mux(stream.encode(samples))
        container.mux(stream.encode(None))
    with pytest.raises(VideoError, match="no video stream"):
        probe(path)


def test_decord_messages_become_one_line_without_places_of_a_build_machine() -> None:
    message = (
        "[12:00:01] /github/workspace/src/video/ffmpeg/threaded_decoder.cc:292: [12:00:01] /github/x.cc:218: "
        "Check failed: avcodec_send_packet(dec_ctx_.get(), pkt.get()) >= 0 (-1094995529 vs. 0) "
        "Thread worker: Error sending packet.\n\nStack trace returned 10 entries:\n[bt] (0) ..."
    )
    assert clean_reason(message, Path("/data/a.mp4")) == "Thread worker: Error sending packet"
    assert clean_reason("Error reading /data/a.mp4...", Path("/data/a.mp4")) == "Error reading a.mp4"
    missing = "[1:2:3] x.cc:151: Check failed: st_nb >= 0 (-1 vs. 0) ERROR cannot find video stream: -1"
    assert clean_reason(missing.replace("1:2:3", "01:02:03"), Path("a")) == "cannot find video stream: -1"


def test_a_video_error_survives_the_way_between_processes() -> None:
    error = VideoError("a.mp4", "broken", frame=3, decoder="decord 0.6.0", status="timeout")
    copy = pickle.loads(pickle.dumps(error))  # noqa: S301
    assert (str(copy), copy.frame, copy.status) == (str(error), 3, "timeout")


@pytest.mark.parametrize("width", [64, 48], ids=["read by decord", "decord fails"])
def test_reading_leaves_no_file_open(width: int, tmp_path: Path) -> None:
    proc = Path("/proc/self/fd")
    if not proc.is_dir():
        pytest.skip("counts open files through /proc")
    path = tmp_path / "a.mp4"
    encode(path, noise(10, width=width), 25)
    for reader in ("decord", "pyav"):
        decode(path, [0, 5], reader=reader)
    assert str(path) not in [os.path.realpath(link) for link in proc.iterdir()]
