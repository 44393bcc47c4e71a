"""Videos whose pixels tell which frames were read."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from mvd_offline.randomness import KeyedStream
from mvd_offline.video.catalog import Catalog, Video
from mvd_offline.video.decode import probe
from mvd_offline.video.synthetic import draw_frames, encode


@dataclass(frozen=True)
class KnownVideos:
    """`ramp.mp4`: 54 frames of 48 x 32 pixels, frame i of grey level 16 + 4 i. `disc.mp4`: 20 frames."""

    root: Path
    ramp: Video
    disc: Video

    def frames_in(self, clip: NDArray[np.uint8]) -> list[int]:
        """Frame numbers of (T, H, W, 3) pixels of the ramp."""
        return [round((float(frame.mean()) - 16) / 4) for frame in clip]

    def write_catalog(self, path: Path, *videos: Video, classes: tuple[str, ...] = ()) -> Path:
        Catalog(videos or (self.disc, self.ramp), self.root, classes).write(path)
        return path


@pytest.fixture(scope="session")
def known_videos(tmp_path_factory: pytest.TempPathFactory) -> KnownVideos:
    root = tmp_path_factory.mktemp("known")
    levels = (16 + 4 * np.arange(54)).astype(np.uint8)
    encode(root / "ramp.mp4", np.broadcast_to(levels[:, None, None, None], (54, 32, 48, 3)).copy(), 25)
    encode(root / "disc.mp4", draw_frames(64, 48, 20, "checks", "left", KeyedStream(0)), 25)
    return KnownVideos(root, _row(root, "ramp.mp4", 1), _row(root, "disc.mp4", 0))


def _row(root: Path, name: str, label: int) -> Video:
    facts = probe(root / name)
    blank = Video(
        video_id=name, path=name, label=label, label_name=f"class {label}", frames=facts.frames, fps=facts.fps,
        width=facts.width, height=facts.height, size=0, mtime_ns=0, sha256="", status="ok", detail="",
        decoder=facts.decoder,
    )  # fmt: skip
    return replace(blank, sha256=f"{label:064x}", size=(root / name).stat().st_size)
