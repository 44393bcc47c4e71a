"""MAE and VideoMAE: targets against numbers computed by hand, and what the losses depend on."""

from __future__ import annotations

import pytest
import torch

from mvd_offline.models import load_teacher
from mvd_offline.models.pretraining import (
    MAEPretrainer,
    VideoMAEPretrainer,
    build_pretrainer,
    mae_targets,
    videomae_targets,
)
from mvd_offline.models.saving import save_model
from mvd_offline.recipe import DecoderSection, PretrainModelSection, ViewSection

MEAN, STD = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])


def test_mae_targets_are_patches_in_y_x_channel_order():
    image = torch.arange(3 * 4 * 4.0).view(1, 3, 4, 4)
    targets = mae_targets(image, 2, normalize=False)
    # The patch in row 0, column 1 covers pixels (0, 2), (0, 3), (1, 2), (1, 3); channels are 16 apart.
    assert targets.shape == (1, 4, 12)
    assert targets[0, 1].tolist() == [2, 18, 34, 3, 19, 35, 6, 22, 38, 7, 23, 39]


def test_mae_targets_are_normalised_over_pixels_and_channels_jointly():
    image = torch.arange(3 * 2 * 2.0).view(1, 3, 2, 2)
    # The values 0..11 have mean 5.5 and unbiased variance 13.
    expected = (torch.tensor([0, 4, 8, 1, 5, 9, 2, 6, 10, 3, 7, 11]) - 5.5) / (13 + 1e-6) ** 0.5
    torch.testing.assert_close(mae_targets(image, 2)[0, 0], expected)


def test_videomae_targets_are_pixels_from_0_to_1_in_t_y_x_channel_order():
    pixels = torch.arange(3 * 2 * 2 * 4.0).view(1, 3, 2, 2, 4) / 48
    video = (pixels - MEAN.view(1, 3, 1, 1, 1)) / STD.view(1, 3, 1, 1, 1)
    targets = videomae_targets(video, 2, 2, normalize=False)
    # The second cube covers columns 2 and 3 of both rows and frames; a frame is 8 apart, a channel 16.
    offsets = [2, 3, 6, 7, 10, 11, 14, 15]
    expected = torch.tensor([offset + 16 * channel for offset in offsets for channel in range(3)]) / 48
    assert targets.shape == (1, 2, 24)
    torch.testing.assert_close(targets[0, 1], expected)


def test_videomae_targets_are_normalised_for_each_channel():
    # Channel 0 holds 0..7 / 8 (mean 0.4375, unbiased variance 6 / 64), channel 1 a constant, channel 2 its negative.
    ramp = torch.arange(8.0).view(2, 2, 2) / 8
    pixels = torch.stack([ramp, torch.full_like(ramp, 0.5), 1 - ramp])[None]
    video = (pixels - MEAN.view(1, 3, 1, 1, 1)) / STD.view(1, 3, 1, 1, 1)
    targets = videomae_targets(video, 2, 2).view(8, 3)
    expected = (torch.arange(8.0) / 8 - 0.4375) / ((6 / 64) ** 0.5 + 1e-6)
    torch.testing.assert_close(targets[:, 0], expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(targets[:, 2], -expected, rtol=1e-5, atol=1e-5)
    assert targets[:, 1].abs().max() < 0.2  # rounding noise over an eps of 1e-6


def test_mae_loss_depends_on_masked_targets_and_visible_inputs_only(mae, video):
    images = video[:, :, 0]
    mask = torch.zeros(2, 9, dtype=torch.bool)
    mask[:, 2:] = True
    visible, masked = torch.arange(2).expand(2, -1), torch.arange(2, 9).expand(2, -1)
    encoded = mae.norm(mae.encode_tokens(images, visible))
    expected = (mae._decode(encoded, visible, masked) - mae_targets(images, 16)[:, 2:]).square().mean()
    torch.testing.assert_close(mae(images, mask), expected)
    torch.testing.assert_close(mae(images, mask, masked_tokens=7), expected)


@pytest.mark.parametrize("name", ["mae", "videomae"])
def test_every_parameter_learns(name, request, video, mask):
    model = request.getfixturevalue(name)
    loss = model(video[:, :, 0], mask[:, :9].sort()[0]) if name == "mae" else model(video, mask)
    loss.backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_they_save_official_names_that_load_as_teachers(mae, videomae, video, tmp_path):
    assert {"cls_token", "pos_embed", "decoder_pos_embed", "decoder_pred.weight"} <= mae.state_dict().keys()
    names = videomae.state_dict().keys()
    assert {"encoder.norm.weight", "encoder_to_decoder.weight", "decoder.head.bias", "mask_token"} <= names
    assert not any("pos_embed" in name or "table" in name for name in names)
    assert "encoder_to_decoder.bias" not in names
    for kind, model in (("image", mae), ("video", videomae)):
        torch.save({"model": model.state_dict()}, tmp_path / f"{kind}.pth")
        assert load_teacher(tmp_path / f"{kind}.pth", kind, heads=3)(video).shape == (2, 18, 48)
        save_model(tmp_path / f"{kind}.safetensors", model)
        assert load_teacher(tmp_path / f"{kind}.safetensors", kind).arch.heads == 3


@pytest.mark.parametrize(("method", "kind"), [("mae", MAEPretrainer), ("videomae", VideoMAEPretrainer)])
def test_a_recipe_builds_them(method, kind):
    section = PretrainModelSection(width=48, depth=2, heads=3, decoder=DecoderSection(depth=1, width=32, heads=2))
    model = build_pretrainer(method, section, ViewSection(frames=4, image_size=48))
    assert isinstance(model, kind)
    assert model.decoder_arch.width == 32
