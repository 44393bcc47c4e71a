"""Videos of keyframes alone: each wanted frame is decoded by itself, and is the one of that number."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from numpy.typing import NDArray

from mvd_offline.errors import VideoError
from mvd_offline.randomness import KeyedStream
from mvd_offline.video.decode import decode, probe
from mvd_offline.video.keyframes import indexed_keyframes
from mvd_offline.video.synthetic import draw_frames, encode

CODECS = {
    "jpeg": ("mjpeg", "yuvj420p", {}),
    "h264": ("libx264", "yuv420p", {"g": "1"}),
}


def write(path: Path, codec: str = "jpeg", count: int = 40, **container_options: str) -> NDArray[np.uint8]:
    """A video of keyframes; returns its frames as they decode from the first to the last."""
    name, layout, options = CODECS[codec]
    with av.open(str(path), "w", container_options=container_options) as container:
        stream = container.add_stream(name, rate=25, options=options | {"threads": "1"})
        stream.height, stream.width, stream.pix_fmt = 48, 64, layout
        for frame in draw_frames(64, 48, count, "checks", "left", KeyedStream(0)):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))
    return sequential(path)


def sequential(path: Path) -> NDArray[np.uint8]:
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def numbers(path: Path, *wanted: int) -> list[int]:
    return [number for number, _ in indexed_keyframes(path, np.array(wanted))]


@pytest.mark.parametrize("codec", CODECS)
def test_each_frame_is_found_alone_and_equals_that_of_a_read_from_the_start(codec: str, tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    reference = write(path, codec)
    assert len(reference) == 40
    assert numbers(path, 3, 17, 39) == [3, 17, 39]
    for index in range(0, 40, 7):
        assert np.array_equal(decode(path, [index], reader="pyav").frames[0], reference[index])
    clip = [2, 6, 6, 10, 1, 39]
    assert np.array_equal(decode(path, clip, reader="pyav").frames, reference[clip])
    assert np.array_equal(decode(path, clip, reader="decord").frames, reference[clip])


@pytest.mark.parametrize("codec", CODECS)
def test_they_are_left_to_the_reader_that_reads_only_what_is_wanted(codec: str, tmp_path: Path) -> None:
    write(tmp_path / "a.mp4", codec)
    assert probe(tmp_path / "a.mp4").decoder == "pyav"
    assert decode(tmp_path / "a.mp4", [5]).decoder.startswith("pyav ")


def test_a_video_whose_frames_need_others_is_not_read_this_way(tmp_path: Path) -> None:
    encode(tmp_path / "a.mp4", draw_frames(64, 48, 40, "checks", "left", KeyedStream(0)), 25)
    assert numbers(tmp_path / "a.mp4", 0, 24) == []
    assert probe(tmp_path / "a.mp4").decoder == "decord"


def test_frames_beyond_the_end_are_an_error(tmp_path: Path) -> None:
    write(tmp_path / "a.mp4", count=10)
    with pytest.raises(VideoError, match="frame 10: the video ends before this frame"):
        decode(tmp_path / "a.mp4", [3, 10], reader="pyav")


@pytest.mark.parametrize("flags", ["frag_keyframe", "frag_keyframe+empty_moov"])
def test_an_index_that_is_not_whole_misleads_nobody(flags: str, tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    reference = write(path, movflags=flags)
    assert probe(path).frames == 40
    for index in (0, 1, 20, 39):
        assert np.array_equal(decode(path, [index], reader="pyav").frames[0], reference[index])


def test_frames_that_an_edit_list_cuts_away_are_not_counted(tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole.mp4", tmp_path / "cut.mp4"
    write(whole)
    with av.open(str(whole)) as source, av.open(str(cut), "w") as target:
        copy = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.size and packet.pts is not None:
                shift = round(Fraction(10, 25) / packet.time_base)
                packet.pts, packet.dts = packet.pts - shift, packet.dts - shift
                packet.stream = copy
                target.mux(packet)
    reference = sequential(cut)
    assert probe(cut).frames == len(reference)
    assert np.array_equal(decode(cut, [0, 11, len(reference) - 1]).frames, reference[[0, 11, -1]])


def test_a_damaged_frame_is_named_and_the_others_still_decode(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    reference = write(path)
    with av.open(str(path)) as container:
        places = [(packet.pos, packet.size) for packet in container.demux(video=0) if packet.size]
    content = bytearray(path.read_bytes())
    place, size = places[12]
    content[place : place + size] = bytes(size)
    path.write_bytes(content)
    with pytest.raises(VideoError, match="frame 12"):
        decode(path, [3, 12, 20], reader="pyav")
    assert np.array_equal(decode(path, [11, 13], reader="pyav").frames, reference[[11, 13]])
