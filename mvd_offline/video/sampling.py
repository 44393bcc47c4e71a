"""Which frames of a video a clip takes: pure arithmetic on frame numbers.

Every function returns frame indices in `[0, frames_in_video)`, ascending, repeated where a video is too short.
Defaults are those of MVD: 16 frames at a stride of 4, a span of 64 frames.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from mvd_offline.errors import UsageError
from mvd_offline.randomness import KeyedStream

Indices = tuple[int, ...]


# ---- distillation (MVD official code, K400 pretraining data set) ---------------------------------------------------


def distillation_first_frame(
    frames_in_video: int, span: int, stream: KeyedStream, segment: int = 0, segments: int = 1
) -> int:
    """Where a clip of `span` frames starts: uniform in `[0, frames_in_video - span]`, both ends included.

    Of several clips each starts in its own of as many equal parts of that range (what is left over at its end starts
    none); anywhere in it where it has fewer frames than there are clips. 0 for a video shorter than the span.
    """
    _check_frames(frames_in_video)
    _check_clip(segment, segments)
    starts = frames_in_video - span + 1
    if starts < 1:
        return 0
    part = starts // segments
    return segment * part + stream.below(part) if part else stream.below(starts)


def distillation_indices(frames_in_video: int, first: int, num_frames: int = 16, stride: int = 4) -> Indices:
    """Steps of `stride` from `first`; once a step would pass the last frame but one, the index is repeated.

    >>> distillation_indices(40, 0)
    (0, 4, 8, 12, 16, 20, 24, 28, 32, 36, 36, 36, 36, 36, 36, 36)
    """
    _check_frames(frames_in_video)
    if not 0 <= first < frames_in_video:
        raise UsageError(f"first frame {first} is outside the video's {frames_in_video} frames")
    indices = [first]
    while len(indices) < num_frames:
        step = indices[-1] + stride
        indices.append(step if step <= frames_in_video - 2 else indices[-1])
    return tuple(indices)


def distillation_clips(
    frames_in_video: NDArray[np.int32], first: NDArray[np.int32], num_frames: int = 16, stride: int = 4
) -> NDArray[np.int32]:
    """`distillation_indices` of B clips at once: (B, num_frames)."""
    steps = np.maximum(frames_in_video - 2 - first, 0) // stride
    taken = np.minimum(np.arange(num_frames, dtype=np.int32), steps[:, None])
    return (first[:, None] + stride * taken).astype(np.int32)


# ---- fine-tuning: random in time -----------------------------------------------------------------------------------


def dense_train_indices(frames_in_video: int, stream: KeyedStream, num_frames: int = 16, stride: int = 4) -> Indices:
    """Kinetics, UCF101, HMDB51: a random window of `num_frames * stride` frames (MVD official code).

    The window's end is uniform in `[span, frames_in_video - 1]`; see `dense_indices_until` for its frames.
    """
    span = num_frames * stride
    end = span + stream.below(frames_in_video - span) if frames_in_video > span else frames_in_video
    return dense_indices_until(frames_in_video, end, num_frames, stride)


def dense_indices_until(frames_in_video: int, end: int, num_frames: int = 16, stride: int = 4) -> Indices:
    """`num_frames` points evenly over `[end - span, end]`, truncated: spaced by 64/15, not by 4 (official quirk).

    A video of at most `span` frames gives one point every `stride` frames over its whole length, then its last frame.
    """
    _check_frames(frames_in_video)
    span = num_frames * stride
    if frames_in_video > span:
        if not span <= end < frames_in_video:
            raise UsageError(f"the window's end is {end}; allowed: {span} to {frames_in_video - 1}")
        points = np.clip(np.linspace(end - span, end, num_frames), end - span, end - 1)
    else:
        points = np.linspace(0, frames_in_video, frames_in_video // stride)
        points = np.concatenate([points, np.full(num_frames - len(points), float(frames_in_video))])
        points = np.clip(points, 0, frames_in_video - 1)
    return tuple(int(point) for point in points)


def uniform_train_indices(frames_in_video: int, stream: KeyedStream, num_frames: int = 16) -> Indices:
    """Something-Something: one random frame from each of `num_frames` segments (MVD official code).

    Neighbouring segments share their ends, so a frame can be drawn twice. VideoMAE's segments differ.
    """
    _check_frames(frames_in_video)
    length = (frames_in_video - 1) / num_frames
    bounds = [round(length * i) for i in range(num_frames + 1)]  # Python and numpy both round half to even
    return tuple(low + stream.below(high - low + 1) for low, high in pairwise(bounds))


# ---- testing: several clips of a video -----------------------------------------------------------------------------


def dense_test_indices(
    frames_in_video: int, clip: int, clips: int = 5, num_frames: int = 16, stride: int = 4
) -> Indices:
    """Clip `clip` of `clips`, spread evenly over every `stride`-th frame of the video (MVD official code).

    Videos shorter than the span repeat their last strided frame. A single clip is the centred one (the official code
    divides by zero there).
    """
    _check_frames(frames_in_video)
    _check_clip(clip, clips)
    strided = list(range(0, frames_in_video, stride))
    strided += [strided[-1]] * (num_frames - len(strided))
    room = len(strided) - num_frames
    start = int(clip * (room / (clips - 1))) if clips > 1 else room // 2
    return tuple(strided[start : start + num_frames])


def uniform_test_indices(frames_in_video: int, clip: int, clips: int = 2, num_frames: int = 16) -> Indices:
    """Clip `clip` takes the middle of its share (a `clips`-th) of each of `num_frames` segments (MVD official code)."""
    _check_frames(frames_in_video)
    _check_clip(clip, clips)
    length = (frames_in_video - 1) / num_frames
    share = length / clips
    starts = [round(length * i + clip * share) for i in range(num_frames)]
    ends = [round(length * i + (clip + 1) * share) for i in range(num_frames)]
    return tuple((start + end) // 2 for start, end in zip(starts, ends, strict=True))


def _check_frames(frames_in_video: int) -> None:
    if frames_in_video < 1:
        raise UsageError(f"a clip needs a video of at least one frame, not {frames_in_video}")


def _check_clip(clip: int, clips: int) -> None:
    if not 0 <= clip < clips:
        raise UsageError(f"clip {clip} of {clips}: clips are numbered from 0 to {clips - 1}")
