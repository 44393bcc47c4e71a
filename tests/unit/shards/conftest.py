"""One extracted store over generated videos, for tests that need pixels and teachers."""

from __future__ import annotations

from pathlib import Path

import pytest

from mvd_offline.shards import Store, open_store


@pytest.fixture(scope="session")
def extracted(synthetic_videos: Path, tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Both tiny teachers over six generated videos and a broken one. Tests only read it."""
    from mvd_offline.extract import extract
    from mvd_offline.planner import plan_store
    from mvd_offline.recipe import load_distill
    from mvd_offline.video.catalog import scan

    folder = tmp_path_factory.mktemp("extracted")
    videos = folder / "videos"
    videos.mkdir()
    for path in sorted(synthetic_videos.rglob("*.mp4"))[:6]:
        (videos / f"{path.parent.name}.mp4").write_bytes(path.read_bytes())
    (videos / "broken.mp4").write_bytes(b"no video")
    catalog = scan(videos, root=None, workers=1, timeout_seconds=30.0)
    catalog.write(folder / "catalog.parquet")
    recipe = load_distill("smoke/distill_vit_s_from_vit_b_k400")
    plan_store(recipe, catalog_path=folder / "catalog.parquet", store_dir=folder / "store")
    extract(folder / "store", workers=1, timeout_seconds=60.0, quiet=True)
    return open_store(folder / "store")
