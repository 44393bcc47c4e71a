"""Mixup, CutMix and erasing of a batch of clips."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from timm.data.mixup import mixup_target, rand_bbox
from timm.loss import SoftTargetCrossEntropy
from torch.nn import functional as F

from mvd_offline.finetuning.drawing import Erasure
from mvd_offline.finetuning.erasing import erase
from mvd_offline.finetuning.mixing import Mix, draw_cut, draw_mix, mix_clips, mix_labels
from mvd_offline.randomness import KeyedStream
from mvd_offline.recipe import MixingSection
from mvd_offline.video.crops import CropBox

SECTION = MixingSection()


# ---- what is drawn -----------------------------------------------------------------------------------------------


def test_half_of_the_batches_are_cut_and_half_blended_with_their_distributions() -> None:
    draws = [draw_mix(SECTION, 224, KeyedStream("draw", key)) for key in range(8000)]
    mixes = [mix for mix in draws if mix]
    assert len(mixes) == len(draws), "probability 1"
    blended = np.array([mix.share for mix in mixes if mix.box is None])
    assert len(blended) / len(mixes) == pytest.approx(0.5, abs=0.02)
    # Beta(0.8, 0.8): mean 1/2, variance 1 / (4 * (2 * 0.8 + 1)).
    assert blended.mean() == pytest.approx(0.5, abs=0.02)
    assert blended.var() == pytest.approx(1 / 10.4, abs=0.006)


def test_one_of_both_alone_and_a_probability_below_one() -> None:
    only = {
        name: [draw_mix(MixingSection(**{off: 0.0}), 224, KeyedStream(key)) for key in range(50)]
        for name, off in (("mixup", "cutmix_alpha"), ("cutmix", "mixup_alpha"))
    }
    assert all(mix and mix.box is None for mix in only["mixup"])
    assert all(mix and mix.box for mix in only["cutmix"])
    some = [draw_mix(MixingSection(probability=0.3), 224, KeyedStream(key)) for key in range(2000)]
    assert sum(mix is not None for mix in some) / 2000 == pytest.approx(0.3, abs=0.04)


def test_boxes_are_distributed_as_timms() -> None:
    np.random.seed(0)  # noqa: NPY002 - timm draws from it
    shares = np.random.default_rng(0).uniform(size=4000)
    theirs = np.array([rand_bbox((224, 224), share) for share in shares], float)  # top, bottom, left, right
    ours = []
    for key, share in enumerate(shares):
        box = draw_cut(224, share, KeyedStream(key))
        assert box.w == 0 or box.h == 0 or box.inside(224, 224)
        ours.append((box.y, box.y + box.h, box.x, box.x + box.w))
    assert np.mean(ours, axis=0) == pytest.approx(theirs.mean(axis=0), abs=4.0)
    assert np.std(ours, axis=0) == pytest.approx(theirs.std(axis=0), abs=4.0)


# ---- CutMix: correct, and as released ----------------------------------------------------------------------------


def pasted_volumes(frames: int, columns: int, *, in_time: bool) -> tuple[np.ndarray, np.ndarray]:
    """Of many CutMix draws on clips of 224 rows: the share of the other clip's values, and that of its label.

    Clips are as small as they can be: all frames are treated alike, or else all columns.
    """
    section = MixingSection(mixup_alpha=0.0)
    volumes, labels = [], []
    for key in range(1500):
        mix = draw_mix(section, 224, KeyedStream("volume", key))
        assert mix is not None
        clips = torch.zeros(2, 1, frames, 224, columns, dtype=torch.uint8)
        clips[1] = 1
        mixed = mix_clips(clips, mix, in_time=in_time)
        volumes.append(float(mixed[0].float().mean()))
        assert float(mixed[1].float().mean()) == pytest.approx(1.0 - volumes[-1], abs=1e-5)
        labels.append(float(mix_labels(torch.tensor([0, 1]), 2, mix)[0, 1]))
    return np.array(volumes), np.array(labels)


def test_the_label_gives_the_other_video_the_share_of_the_volume_that_it_has() -> None:
    volumes, labels = pasted_volumes(1, 224, in_time=False)
    assert volumes == pytest.approx(labels, abs=1e-5)
    assert labels.mean() == pytest.approx(0.32, abs=0.02)


def test_as_released_most_boxes_miss_the_clip_and_labels_change_all_the_same() -> None:
    volumes, labels = pasted_volumes(16, 1, in_time=True)
    assert (volumes > 0).mean() == pytest.approx(0.40, abs=0.04)
    assert volumes.mean() == pytest.approx(0.22, abs=0.02)
    assert labels.mean() == pytest.approx(0.32, abs=0.02)


def test_a_box_is_cut_out_of_every_frame_and_channel() -> None:
    clips = torch.arange(2.0).view(2, 1, 1, 1, 1).expand(2, 3, 4, 8, 8).clone()
    mixed = mix_clips(clips, Mix(0.9, CropBox(x=1, y=2, w=3, h=2)))
    expected = torch.zeros(3, 4, 8, 8)
    expected[:, :, 2:4, 1:4] = 1.0
    assert torch.equal(mixed[0], expected)
    assert torch.equal(mixed[1], 1.0 - expected)


# ---- mixup, labels -----------------------------------------------------------------------------------------------


def test_every_clip_is_blended_with_its_counterpart_from_the_other_end() -> None:
    clips = torch.tensor([1.0, 10.0, 100.0, 1000.0]).view(4, 1, 1, 1, 1).expand(4, 3, 2, 4, 4)
    mixed = mix_clips(clips.clone(), Mix(0.75))
    assert mixed[:, 0, 0, 0, 0].tolist() == [250.75, 32.5, 77.5, 750.25]
    assert (mixed == mixed[:, :1, :1, :1, :1]).all()


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_the_loss_is_timms_with_soft_targets(share: float) -> None:
    logits, labels = torch.randn(6, 5, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 4, 2, 2, 1, 3])
    ours = F.cross_entropy(logits, mix_labels(labels, 5, Mix(share)), label_smoothing=0.1)
    theirs = SoftTargetCrossEntropy()(logits, mixup_target(labels, 5, lam=share, smoothing=0.1))
    torch.testing.assert_close(ours, theirs)


# ---- erasing -----------------------------------------------------------------------------------------------------

BOX = CropBox(x=3, y=10, w=40, h=30)


def test_an_erased_box_is_noise_in_all_frames_and_the_rest_is_untouched() -> None:
    clips = torch.full((2, 3, 8, 64, 64), 7.0)
    found = erase(clips.clone(), [None, Erasure(BOX, seed=5)])
    assert torch.equal(found[0], clips[0])
    inside = torch.zeros(64, 64, dtype=torch.bool)
    inside[10:40, 3:43] = True
    assert (found[1][..., ~inside] == 7.0).all()
    noise = found[1][..., inside]  # channels, frames, pixels
    assert (noise != 7.0).all()
    assert noise.mean().item() == pytest.approx(0.0, abs=0.03)
    assert noise.std().item() == pytest.approx(1.0, abs=0.03)
    # Independent between frames, channels and pixels.
    for one, other in ((noise[0], noise[1]), (noise[:, 0], noise[:, 1]), (noise[..., :-1], noise[..., 1:])):
        assert abs((one * other).mean().item()) < 0.03


def test_the_noise_is_the_clips_own_wherever_it_lies_in_whichever_batch() -> None:
    alone = erase(torch.zeros(1, 3, 4, 64, 64), [Erasure(BOX, 5)])[0]
    batch = erase(torch.zeros(3, 3, 4, 64, 64), [Erasure(BOX, 6), None, Erasure(BOX, 5)])
    assert torch.equal(batch[2], alone)
    assert not torch.equal(batch[0], alone)
