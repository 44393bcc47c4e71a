"""Attention weights against the same by hand, and films of a video whose frames can be told apart."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from PIL import Image

from mvd_offline.analysis.attention import LastAttention, Place, require_inside
from mvd_offline.analysis.feature_film import PANEL, write_film
from mvd_offline.analysis.features import Film, film
from mvd_offline.analysis.models import ClipShape
from mvd_offline.errors import UsageError
from mvd_offline.geometry import TokenGrid
from mvd_offline.models.inputs import normalize
from mvd_offline.models.teachers import load_teacher
from mvd_offline.models.vit import Attention, QkvBias
from mvd_offline.video.decode import decode

SHAPE = ClipShape(frames=4, stride=2, image_size=32)


@pytest.mark.parametrize("bias", ["split", "fused"])
def test_attention_weights_are_the_softmax_that_attention_uses(bias: QkvBias) -> None:
    torch.manual_seed(0)
    attention = Attention(32, 4, bias)
    for parameter in attention.parameters():
        torch.nn.init.normal_(parameter)
    x = torch.randn(2, 6, 32)

    weights = attention.weights(x, torch.arange(6))

    offset = torch.cat([attention.q_bias, torch.zeros(32), attention.v_bias]) if attention.split else 0
    q, k, v = (x @ attention.qkv.weight.T + (offset if attention.split else attention.qkv.bias)).chunk(3, dim=2)
    heads = [part.reshape(2, 6, 4, 8).transpose(1, 2) for part in (q, k, v)]
    scores = (heads[0] @ heads[1].transpose(2, 3) / math.sqrt(8)).softmax(-1)
    assert torch.allclose(weights, scores, atol=1e-5)
    mixed = (weights @ heads[2]).transpose(1, 2).reshape(2, 6, 32)
    assert torch.allclose(attention.proj(mixed), attention(x), atol=1e-4)
    assert torch.equal(attention.weights(x, torch.tensor([3]))[:, :, 0], weights[:, :, 3])


def test_a_video_teacher_looks_at_all_frames_and_an_image_teacher_at_one() -> None:
    video = normalize(torch.randint(0, 256, (1, 4, 32, 32, 3), dtype=torch.uint8))
    found = {}
    for kind in ("image", "video"):
        teacher = load_teacher("random:vit_tiny", kind, image_size=32, frames=4)
        with LastAttention(teacher) as looking:
            teacher(video)
        found[kind] = looking.of(Place(1, 0, 1))

    assert found["video"].shape == found["image"].shape == (2, 2, 2)
    assert found["video"].sum() == pytest.approx(1.0, abs=1e-5)
    assert (found["image"][0] == 0).all()
    assert 0.5 < found["image"][1].sum() < 1.0


def test_tokens_outside_of_the_grid_are_refused() -> None:
    with pytest.raises(UsageError, match=r"token grid of m is 2 x 2 x 2 .* 0,0,0 to 1,1,1 are allowed"):
        require_inside(Place(0, 2, 0), TokenGrid(2, 2, 2), "m")


@pytest.fixture(scope="module")
def ramp_film(known_videos) -> Film:
    models = {"one": "random:vit_tiny:1", "two": "random:vit_tiny:2"}
    return film(known_videos.root / "ramp.mp4", models, shape=SHAPE, clips=3, tokens=[Place(1, 0, 1)])


def test_clips_follow_each_other_and_colours_are_shared_by_them(ramp_film: Film, known_videos) -> None:
    assert ramp_film.frame_numbers == ((0, 2, 4, 6), (8, 10, 12, 14), (16, 18, 20, 22))
    assert known_videos.frames_in(ramp_film.frames[1]) == [8, 10, 12, 14]
    assert ramp_film.frames_per_second == pytest.approx(12.5)
    assert [model.colours.shape for model in ramp_film.models] == [(6, 2, 2, 3)] * 2
    assert [maps.shape for model in ramp_film.models for maps in model.attention] == [(3, 2, 2, 2)] * 2


@pytest.mark.parametrize("ending", [".mp4", ".gif", ".webp"])
def test_a_film_has_a_picture_for_each_frame(ending: str, ramp_film: Film, tmp_path) -> None:
    path = write_film(ramp_film, tmp_path / "deep" / f"film{ending}")

    if ending == ".mp4":
        shown = decode(path, range(12)).frames
    else:
        with Image.open(path) as pictures:
            assert pictures.n_frames == 12
            pictures.seek(11)
            shown = np.asarray(pictures.convert("RGB"))[None]
    assert shown.shape[1] > 2 * PANEL
    assert shown.shape[2] > 3 * PANEL
    # The clip is on the left: its middle has the grey level of frame 22.
    assert abs(float(shown[-1, 14 + 26 + PANEL // 2, 14 + PANEL // 2].mean()) - (16 + 4 * 22)) < 6


def test_a_still_shows_the_first_clip(ramp_film: Film, tmp_path) -> None:
    with Image.open(write_film(ramp_film, tmp_path / "film.png")) as picture:
        assert picture.height > 5 * 176
    with pytest.raises(UsageError, match=r"\.mp4, \.gif, \.webp"):
        write_film(ramp_film, tmp_path / "film.avi")


def test_a_video_shorter_than_a_clip_is_one_clip(known_videos) -> None:
    found = film(known_videos.root / "disc.mp4", {"one": "random:vit_tiny"}, shape=ClipShape(16, 4, 32), clips=5)

    assert len(found.frames) == 1
    assert max(found.frame_numbers[0]) < 20
