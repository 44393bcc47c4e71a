"""Frames of a video of keyframes alone: each is found in the container's index and decoded without any other.

16 frames of such a file cost 16 decodes. decord, which decodes ahead after each of its seeks, takes about twice the
processor time; a reader that walks from the first wanted frame to the last decodes all that lies between.
"""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mvd_offline.video.packets import keyframe_times, open_best_stream


def indexed_keyframes(path: Path, wanted: NDArray[np.int64]) -> Generator[tuple[int, Any], None, None]:
    """The frames `wanted` (ascending, each once), numbered; fewer where the index does not lead to one."""
    with open_best_stream(path) as (container, stream):
        times = keyframe_times(container, stream)
        if wanted[-1] >= len(times):
            return
        for number in wanted.tolist():
            container.seek(times[number], stream=stream, backward=True)
            frame = _decode_alone(container, stream)
            if frame is None or frame.pts != times[number]:
                return
            yield number, frame


def _decode_alone(container: Any, stream: Any) -> Any:
    packet = next(container.demux(stream), None)
    frames = packet.decode() if packet else []
    if not frames:  # a decoder that holds frames back gives them up at the end of its input
        frames = stream.codec_context.decode(None)
        stream.codec_context.flush_buffers()
    return frames[0] if len(frames) == 1 else None
