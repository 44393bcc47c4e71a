"""Generated, labelled videos whose classes need both appearance and motion.

A disc with one of four textures glides in one of four directions over a background that drifts elsewhere. The frame is
a torus and the disc starts anywhere on it, so at every moment the disc's position has the same distribution for all
motions: a single frame tells the texture and never the motion. Directions are not kept by a horizontal flip.

The disc is lighter than the background throughout, so that what is hidden follows from what can be seen. With textures
around the background's own grey, a small masked autoencoder predicts their mean for a thousand steps.

With `jitter` the disc trembles around its path: two neighbouring frames then say little of the direction, and a clip's
first and last ones all of it.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mvd_offline.errors import UsageError
from mvd_offline.randomness import KeyedStream

TEXTURES = ("checks", "dots", "rings", "stripes")
MOTIONS = {"left": (-1, 0), "right": (1, 0), "down": (0, 1), "up": (0, -1)}
_CLASSES = {2: (1, 2), 4: (2, 2), 8: (4, 2), 16: (4, 4)}  # classes: (textures, motions)
_ASPECTS = (1.0, 4 / 3, 3 / 4)
_FRAME_RATES = (24, 25, 30)


@dataclass(frozen=True)
class SyntheticVideo:
    """One file to make; its pixels are a function of `key` and these settings."""

    path: Path
    key: tuple[int | str, ...]
    texture: str
    motion: str
    short_side: tuple[int, int]
    frames: tuple[int, int]
    aspects: tuple[float, ...] = _ASPECTS
    jitter: float = 0.0


def class_names(classes: int = 16) -> tuple[str, ...]:
    """`texture_motion` of each class, alphabetically: 2 (motions alone), 4, 8 or 16 classes."""
    if classes not in _CLASSES:
        raise UsageError(f"classes is {classes}; allowed: {', '.join(map(str, _CLASSES))}")
    textures, motions = _CLASSES[classes]
    return tuple(sorted(f"{t}_{m}" for t in TEXTURES[:textures] for m in tuple(MOTIONS)[:motions]))


def synthesize(
    out_dir: str | Path,
    *,
    videos_per_class: int,
    seed: int = 0,
    split: str = "train",
    classes: int = 16,
    short_side: tuple[int, int] = (64, 96),
    frames: tuple[int, int] = (48, 96),
    aspects: tuple[float, ...] = _ASPECTS,
    jitter: float = 0.0,
    images: bool = False,
    workers: int = 1,
    on_progress: Callable[[int, int], None] | None = None,
) -> list[Path]:
    """Writes `out_dir/<class>/<number>.mp4` (H.264) and returns the paths, in order.

    The same arguments give the same bytes (with the same encoder), whatever `workers` is; more videos per class leave
    the first ones as they are.

    Args:
        out_dir: folder; files of the same names are overwritten.
        videos_per_class, classes: how many; see `class_names`.
        seed, split: key of all draws; another split of the same seed has the same classes and other videos.
        short_side: smallest and largest shorter side in pixels; odd sizes are rounded down.
        frames: fewest and most frames. Below 64, a video is shorter than MVD's clips of 16 frames at stride 4.
        aspects: width over height; each video draws one of them.
        jitter: how far from its path each frame may put the disc, both ways in x and in y, as a share of the shorter
            side.
        images: write the first frame of each as `<number>.png` instead.
        workers: processes.
        on_progress: called with (videos done, videos).
    """
    _check(videos_per_class, short_side, frames, workers)
    videos = []
    for name in class_names(classes):
        texture, motion = name.split("_")
        folder = Path(out_dir) / name
        folder.mkdir(parents=True, exist_ok=True)
        for number in range(videos_per_class):
            key = ("synthetic", seed, split, name, number)
            path = folder / f"{number:05d}.{'png' if images else 'mp4'}"
            videos.append(SyntheticVideo(path, key, texture, motion, short_side, frames, aspects, jitter))
    if workers == 1:
        for done, video in enumerate(videos, start=1):
            _write_video(video)
            if on_progress:
                on_progress(done, len(videos))
    else:
        with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
            for done, _ in enumerate(pool.map(_write_video, videos, chunksize=8), start=1):
                if on_progress:
                    on_progress(done, len(videos))
    return [video.path for video in videos]


def _write_video(video: SyntheticVideo) -> None:
    stream = KeyedStream(*video.key)
    short = _between(stream, *video.short_side)
    aspect = video.aspects[stream.below(len(video.aspects))]
    width, height = (_even(short * max(aspect, 1.0)), _even(short * max(1 / aspect, 1.0)))
    count = _between(stream, *video.frames)
    rate = _FRAME_RATES[stream.below(len(_FRAME_RATES))]
    if video.path.suffix == ".png":
        count = 1
    frames = draw_frames(width, height, count, video.texture, video.motion, stream, jitter=video.jitter)
    if video.path.suffix == ".png":
        Image.fromarray(frames[0]).save(video.path)
    else:
        encode(video.path, frames, rate)


# ---- pixels --------------------------------------------------------------------------------------------------------


def draw_frames(
    width: int, height: int, count: int, texture: str, motion: str, stream: KeyedStream, *, jitter: float = 0.0
) -> NDArray[np.uint8]:
    """RGB frames, uint8 (count, height, width, 3); `jitter` as in `synthesize`."""
    short = min(width, height)
    background = _background(width, height, stream)
    disc, inside = _disc(width, height, texture, stream)
    speed = short * stream.uniform(1 / 72, 1 / 48)  # pixels a frame: crosses the frame about once in 60 frames
    drift_angle, drift_speed = stream.uniform(0, 2 * np.pi), speed * stream.uniform(0.2, 0.6)
    start = (stream.uniform(0, width), stream.uniform(0, height))
    layers = [np.tile(layer, (2, 2, 1)) for layer in (background, disc, inside[..., None])]
    frames = np.empty((count, height, width, 3), np.uint8)
    for t, frame in enumerate(frames):
        aside = [short * stream.uniform(-jitter, jitter) if jitter else 0.0 for _ in start]
        dx, dy = (
            round(origin + speed * t * step + off)
            for origin, step, off in zip(start, MOTIONS[motion], aside, strict=True)
        )
        bx, by = round(drift_speed * t * np.cos(drift_angle)), round(drift_speed * t * np.sin(drift_angle))
        frame[:] = _rolled(layers[0], bx, by)
        np.copyto(frame, _rolled(layers[1], dx, dy), where=_rolled(layers[2], dx, dy))
    return frames


def _rolled(doubled: NDArray[Any], dx: int, dy: int) -> NDArray[Any]:
    """`np.roll` by (dx, dy) of a layer that was tiled 2 x 2, as a view."""
    height, width = doubled.shape[0] // 2, doubled.shape[1] // 2
    x, y = -dx % width, -dy % height
    return doubled[y : y + height, x : x + width]


def _background(width: int, height: int, stream: KeyedStream) -> NDArray[np.uint8]:
    """Soft waves around a dark grey, periodic in both directions so that they can drift for ever."""
    y, x = np.mgrid[0:height, 0:width]
    image = np.full((height, width, 3), 36.0)
    for _ in range(3):
        across, down = stream.below(5) - 2, stream.below(5) - 2
        wave = np.sin(2 * np.pi * (across * x / width + down * y / height) + stream.uniform(0, 2 * np.pi))
        image += wave[..., None] * np.array([stream.uniform(-10, 10) for _ in range(3)])
    return image.clip(0, 255).astype(np.uint8)


def _disc(width: int, height: int, texture: str, stream: KeyedStream) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """A textured disc in the middle of a frame: RGB, and where it is."""
    y, x = np.mgrid[0:height, 0:width]
    x, y = x - width / 2, y - height / 2
    radius = min(width, height) * stream.uniform(0.28, 0.36)
    period = min(width, height) * stream.uniform(0.14, 0.18)
    angle = stream.uniform(0, np.pi / 2)
    u = (x * np.cos(angle) + y * np.sin(angle)) / period + stream.uniform()
    v = (y * np.cos(angle) - x * np.sin(angle)) / period + stream.uniform()
    light = {
        "checks": np.floor(u) % 2 == np.floor(v) % 2,
        "dots": np.hypot(u % 1 - 0.5, v % 1 - 0.5) < 0.3,
        "rings": np.hypot(x, y) / period % 1 < 0.5,
        "stripes": u % 1 < 0.5,
    }[texture]
    bright = np.array([stream.uniform(190, 255) for _ in range(3)])
    dark = np.array([stream.uniform(40, 80) for _ in range(3)])
    return np.where(light[..., None], bright, dark).astype(np.uint8), np.hypot(x, y) < radius


# ---- file ----------------------------------------------------------------------------------------------------------


def encode(path: Path, frames: NDArray[np.uint8], frames_per_second: int) -> None:
    """H.264 in MP4: one thread, no clock; a keyframe every 24 frames and reordered frames between, as in real files."""
    import av

    with av.open(str(path), "w", format="mp4", options={"fflags": "+bitexact"}) as container:
        options = {"preset": "superfast", "crf": "20", "threads": "1", "g": "24", "x264-params": "open-gop=0"}
        stream: Any = container.add_stream("libx264", rate=frames_per_second, options=options)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.codec_context.thread_count = 1
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))


def _between(stream: KeyedStream, low: int, high: int) -> int:
    return low + stream.below(high - low + 1)


def _even(size: float) -> int:
    return int(size) // 2 * 2  # yuv420p halves the chroma planes


def _check(videos_per_class: int, short_side: tuple[int, int], frames: tuple[int, int], workers: int) -> None:
    if min(videos_per_class, workers) < 1:
        raise UsageError(f"videos_per_class is {videos_per_class} and workers {workers}; allowed: at least 1")
    if not 16 <= short_side[0] <= short_side[1]:
        raise UsageError(f"short_side is {short_side}; allowed: smallest and largest, from 16 pixels")
    if not 1 <= frames[0] <= frames[1]:
        raise UsageError(f"frames is {frames}; allowed: fewest and most, from 1")
