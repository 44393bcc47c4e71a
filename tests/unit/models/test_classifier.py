"""The classifier, and starting it from pretrained weights."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from mvd_offline.errors import CheckpointError
from mvd_offline.models import load_classifier
from mvd_offline.models.classifier import build_classifier
from mvd_offline.models.loading import start_finetuning
from mvd_offline.models.saving import save_model
from mvd_offline.recipe import ClassifierSection, ClipSection

CLIP = ClipSection(frames=4, image_size=48)


def section(**changes) -> ClassifierSection:
    return ClassifierSection(**({"width": 48, "depth": 2, "heads": 3, "classes": 5} | changes))


def saved(model, tmp_path):
    save_model(tmp_path / "model.safetensors", model)
    return tmp_path / "model.safetensors"


def test_tokens_are_averaged_without_a_norm_before(classifier, video):
    pooled = classifier.encode_tokens(video).mean(dim=1)
    expected = F.layer_norm(pooled, (48,), classifier.fc_norm.weight, classifier.fc_norm.bias, eps=1e-6)
    torch.testing.assert_close(classifier(video), classifier.head(expected))


def test_a_fresh_head_is_a_thousandth_of_the_usual_size():
    torch.manual_seed(0)
    fresh = build_classifier(section(classes=400, head_init_scale=0.001), CLIP)
    assert fresh.head.weight.std().item() == pytest.approx(2e-5, rel=0.05)
    assert fresh.blocks[0].mlp.fc1.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert not fresh.head.bias.any()
    assert not fresh.blocks[0].mlp.fc1.bias.any()


def test_dropout_acts_on_the_pooled_features_in_training_only(video):
    model = build_classifier(section(head_dropout=0.5, head_init_scale=1.0), CLIP)
    assert torch.equal(model.eval()(video), model(video))
    assert not torch.equal(model.train()(video), model(video))


def test_starting_from_a_student_takes_the_encoder_and_leaves_its_norm(student, video, tmp_path):
    classifier, dropped = start_finetuning(saved(student, tmp_path), section(), CLIP)
    assert dropped == []
    assert classifier.training
    assert classifier.positions == "sincos_3d"
    torch.testing.assert_close(classifier.eval().encode_tokens(video), student.encode_tokens(video))
    assert torch.equal(classifier.fc_norm.weight, torch.ones(48))


def test_starting_from_videomae_keeps_its_one_dimensional_positions(videomae, video, tmp_path):
    classifier, _ = start_finetuning(saved(videomae, tmp_path), section(), CLIP)
    assert classifier.positions == "interleaved_1d"
    torch.testing.assert_close(classifier.eval().encode_tokens(video), videomae.encoder.encode_tokens(video))


def test_starting_from_a_classifier_keeps_a_head_that_fits(classifier, video, tmp_path):
    started, dropped = start_finetuning(saved(classifier, tmp_path), section(), CLIP)
    assert dropped == []
    assert torch.equal(started.eval()(video), classifier(video))


def test_a_head_for_other_classes_is_replaced_and_named(classifier, tmp_path):
    started, dropped = start_finetuning(saved(classifier, tmp_path), section(classes=7), CLIP)
    assert dropped == ["head.weight", "head.bias"]
    assert started.head.weight.shape == (7, 48)
    assert torch.equal(started.fc_norm.weight, classifier.fc_norm.weight)


def test_anything_else_that_does_not_fit_is_an_error(student, tmp_path):
    with pytest.raises(CheckpointError, match=r"it has depth 2 \(the recipe: 3\)\. Give the checkpoint"):
        start_finetuning(saved(student, tmp_path), section(depth=3), CLIP)
    with pytest.raises(CheckpointError, match=r"it has width 48 \(the recipe: 96\)"):
        start_finetuning(saved(student, tmp_path), section(width=96), CLIP)


def test_other_heads_than_the_file_records_are_refused(student, tmp_path):
    with pytest.raises(CheckpointError, match=r"it has heads 3 \(the recipe: 4\)"):
        start_finetuning(saved(student, tmp_path), section(heads=4), CLIP)


def test_image_weights_cannot_start_it(mae, tmp_path):
    with pytest.raises(CheckpointError, match="image weights"):
        start_finetuning(saved(mae, tmp_path), section(), CLIP)


def test_our_own_file_needs_no_arguments(classifier, video, tmp_path):
    loaded = load_classifier(saved(classifier, tmp_path))
    assert loaded.grid == classifier.grid
    assert torch.equal(loaded(video), classifier(video))


def test_official_files_are_mvds_unless_said_otherwise(classifier, tmp_path):
    torch.save({"module": classifier.state_dict()}, tmp_path / "official.pth")
    assert load_classifier(tmp_path / "official.pth", heads=3).positions == "sincos_3d"
    videomae = load_classifier(tmp_path / "official.pth", heads=3, positions="interleaved_1d")
    assert videomae.positions == "interleaved_1d"


def test_a_checkpoint_without_a_head_is_no_classifier(student, tmp_path):
    with pytest.raises(CheckpointError, match=r"mvd_student checkpoint without head\.weight"):
        load_classifier(saved(student, tmp_path))
