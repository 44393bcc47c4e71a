"""The attentive head: what its query finds, and that it finds what a mean over tokens loses."""

from __future__ import annotations

import math
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from numpy.typing import NDArray
from torch.nn import functional as F

from mvd_offline.errors import TrainingStopped
from mvd_offline.planner import make_store
from mvd_offline.probing.attentive import (
    AttentiveHead,
    AttentiveSettings,
    TokenReader,
    attentive_scores,
    fit_attentive,
)
from mvd_offline.probing.pooled import pooled_scores
from mvd_offline.probing.stores import SECTION, FeatureStore, read_means
from mvd_offline.recipe import ViewSection
from mvd_offline.shards.schema import ColumnSpec
from mvd_offline.shards.store import open_store
from mvd_offline.training.loop import Batch
from mvd_offline.training.order import BatchRequest
from mvd_offline.training.state import Checkpoints, Position
from mvd_offline.video.catalog import Catalog, Video
from mvd_offline.video.views import Plan

WIDTH, TOKENS, CLASSES = 8, 6, 2
CPU = torch.device("cpu")


def test_the_query_attends_by_softmax_and_the_head_sees_what_it_found() -> None:
    torch.manual_seed(0)
    head, tokens = AttentiveHead(WIDTH, 2, 3), torch.randn(2, TOKENS, WIDTH)

    found = head(tokens)

    parameters = dict(head.named_parameters())
    with torch.no_grad():
        weights, biases = parameters["attention.in_proj_weight"].split(WIDTH), parameters["attention.in_proj_bias"]
        seen = F.layer_norm(tokens, (WIDTH,), eps=1e-6)
        query = (parameters["query"][0, 0] @ weights[0].T + biases[:WIDTH]).view(2, WIDTH // 2)
        keys = (seen @ weights[1].T + biases[WIDTH : 2 * WIDTH]).view(2, TOKENS, 2, WIDTH // 2)
        values = (seen @ weights[2].T + biases[2 * WIDTH :]).view(2, TOKENS, 2, WIDTH // 2)
        shares = (torch.einsum("hd,bnhd->bhn", query, keys) / math.sqrt(WIDTH // 2)).softmax(dim=2)
        pooled = torch.einsum("bhn,bnhd->bhd", shares, values).reshape(2, WIDTH)
        out = parameters["query"][0] + pooled @ parameters["attention.out_proj.weight"].T
        out = out + head.mlp(F.layer_norm(out, (WIDTH,), eps=1e-6))
        expected = out @ parameters["head.weight"].T
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(
    ("rows", "processes", "batch", "micro"),
    [(12, 1, 12, 12), (13, 2, 12, 6), (100, 1, 64, 64), (300, 1, 256, 64), (300, 2, 256, 64), (100_000, 8, 256, 32)],
)
def test_a_batch_is_as_large_as_the_rows_allow_and_divides_by_the_processes(
    rows: int, processes: int, batch: int, micro: int
) -> None:
    optim = AttentiveSettings().optim(rows, processes)

    assert (optim.batch_size, optim.micro_batch_size) == (batch, micro)
    assert optim.epochs * (rows // batch) >= 500 or optim.epochs == 20
    assert AttentiveSettings(epochs=3).optim(rows, processes).epochs == 3


# ---- a fit -------------------------------------------------------------------------------------------------------


def tokens_of(video: str, label: int) -> NDArray[np.float32]:
    """Noise; in a clip of class 1 two tokens, anywhere, have large values that cancel in the mean."""
    draws = np.random.default_rng([*video.encode()])
    tokens = 0.3 * draws.standard_normal((TOKENS, WIDTH)).astype(np.float32)
    if label:
        one, other = draws.permutation(TOKENS)[:2]
        tokens[one, 0] += 3.0
        tokens[other, 0] -= 3.0
    return tokens


def store_of_tokens(folder: Path, name: str, videos: int) -> FeatureStore:
    """A store such as extraction leaves, of clips whose tokens are `tokens_of`."""
    rows = tuple(
        Video(
            video_id=f"{name}-{number:03d}", path=f"{number}.mp4", label=number % CLASSES, label_name="", frames=30,
            fps=25.0, width=64, height=48, size=1, mtime_ns=2, sha256="ab", status="ok", detail="", decoder="decord",
        )
        for number in range(videos)
    )  # fmt: skip
    column = ColumnSpec("video", TOKENS, WIDTH, "float16", "zarr", {"kind": "video"})
    view = ViewSection(frames=4, image_size=32)
    store = make_store(folder / name, Catalog(rows, folder), view, SECTION, [column], {})
    plan = Plan.read(store.plan_path)
    for shard in range(store.shard_count):
        with store.write_shard("video", shard, producer={"torch": "test"}) as writer:
            for view_id in store.shard_view_ids(shard).tolist():
                tokens = tokens_of(plan[view_id].video_id, plan[view_id].label)
                writer.add(view_id, tokens, pixels="0" * 16, decoder="none")
    store.seal()
    return FeatureStore(open_store(folder / name), "video")


def fit(features: FeatureStore, folder: Path, settings: AttentiveSettings) -> AttentiveHead:
    return fit_attentive(features, CLASSES, 2, settings, folder=folder, workers=0, accelerator=Accelerator())


def test_the_query_finds_what_the_mean_over_tokens_loses(tmp_path: Path) -> None:
    train, test = store_of_tokens(tmp_path, "train", 200), store_of_tokens(tmp_path, "test", 100)
    labels = torch.from_numpy(test.labels)

    head = fit(train, tmp_path / "fit", AttentiveSettings(epochs=40, batch_size=50, base_lr=4e-3))

    found = attentive_scores(head, test, CPU).argmax(dim=1) == labels
    assert float(found.double().mean()) > 0.95
    wanted = torch.from_numpy(train.labels)
    for kind in ("linear", "knn"):
        scores = pooled_scores(kind, read_means(train), wanted, read_means(test), CLASSES, CPU)
        assert float((scores.argmax(dim=1) == labels).double().mean()) < 0.7, "chance is 0.5"


def test_a_fit_of_many_short_epochs_is_saved_now_and_then(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train, saved, save = store_of_tokens(tmp_path, "train", 8), [], Checkpoints.save

    def counted(checkpoints: Checkpoints, position: Position, *rest: Any) -> None:
        saved.append(position.step)
        save(checkpoints, position, *rest)

    monkeypatch.setattr(Checkpoints, "save", counted)
    fit(train, tmp_path / "long", AttentiveSettings(epochs=40))
    fit(train, tmp_path / "short", AttentiveSettings(epochs=3))

    assert saved == [*range(2, 41, 2), 1, 2, 3]


def test_a_fit_that_was_interrupted_goes_on_to_the_very_same_head(tmp_path: Path) -> None:
    train = store_of_tokens(tmp_path, "train", 40)
    settings = AttentiveSettings(epochs=4, batch_size=10)
    whole = fit(train, tmp_path / "whole", settings).state_dict()

    read = TokenReader.__call__

    def asked_to_stop(reader: TokenReader, request: BatchRequest) -> Batch:
        if (request.epoch, request.batch) == (1, 1):
            os.kill(os.getpid(), signal.SIGTERM)
        return read(reader, request)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TokenReader, "__call__", asked_to_stop)
        with pytest.raises(TrainingStopped, match="after step 6 of 16"):
            fit(train, tmp_path / "parts", settings)
    parts = fit(train, tmp_path / "parts", settings).state_dict()

    assert whole.keys() == parts.keys()
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    again = fit(train, tmp_path / "parts", settings).state_dict()
    assert all(torch.equal(whole[name], again[name]) for name in whole), "a finished one is read"
