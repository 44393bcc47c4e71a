"""The official code's numbers are reproduced to 1e-5."""

from __future__ import annotations

import pytest
import torch

from mvd_offline.losses import masked_feature_loss
from mvd_offline.models import load_classifier, load_student, load_teacher
from mvd_offline.models.loading import start_finetuning
from mvd_offline.recipe import ClassifierSection, ClipSection


def test_image_teacher_features(tiny, vectors, assert_same):
    teacher = load_teacher(tiny / "image_teacher_mae.pth", "image", heads=3, image_size=64, frames=8)
    assert_same(teacher(vectors["video"]), vectors["image_features"])


def test_video_teacher_features(tiny, vectors, assert_same):
    teacher = load_teacher(tiny / "video_teacher_videomae.pth", "video", heads=5, image_size=64, frames=8)
    assert_same(teacher(vectors["video"]), vectors["video_features"])


def test_teachers_take_any_clip_size_when_none_is_named(tiny, vectors, assert_same):
    teacher = load_teacher(tiny / "video_teacher_videomae.pth", "video", heads=5)
    assert teacher.image_size == 224
    assert_same(teacher(vectors["video"]), vectors["video_features"])


@pytest.mark.parametrize("name", ["image", "video"])
def test_student_predictions(name, tiny, vectors, assert_same):
    student = load_student(tiny / "student_mvd.pth", heads=4)
    assert_same(student(vectors["video"], vectors["mask"])[name], vectors[f"{name}_prediction"])


def test_student_encoder_output(tiny, vectors, assert_same):
    student = load_student(tiny / "student_mvd.pth", heads=4)
    assert_same(student.encode(vectors["video"], vectors["mask"]), vectors["encoder_output"])


@pytest.mark.parametrize("name", ["image", "video"])
@pytest.mark.parametrize(("normalize", "suffix"), [(False, ""), (True, "_normalised_targets")])
def test_losses(name, normalize, suffix, vectors, assert_same):
    prediction = vectors[f"{name}_prediction"]
    target = vectors[f"{name}_features"][vectors["mask"]].view_as(prediction)
    loss = masked_feature_loss(prediction, target, normalize_targets=normalize)
    assert_same(loss, vectors[f"loss_{name}{suffix}"])


def test_fine_tuned_logits(tiny, vectors, assert_same):
    classifier = load_classifier(tiny / "finetuned_mvd.pth", heads=4)
    assert_same(classifier(vectors["video"]), vectors["finetuned_logits"])


def test_logits_of_the_students_encoder_under_the_fine_tuned_head(tiny, vectors, assert_same):
    section = ClassifierSection(width=64, depth=3, heads=4, classes=6)
    classifier, _ = start_finetuning(tiny / "student_mvd.pth", section, ClipSection(frames=8, image_size=64))
    head = load_classifier(tiny / "finetuned_mvd.pth", heads=4)
    classifier.fc_norm, classifier.head = head.fc_norm, head.head
    assert_same(classifier.eval()(vectors["video"]), vectors["student_encoder_with_finetuned_head_logits"])


def test_student_has_the_official_tensors_and_only_them(tiny, facts):
    student = load_student(tiny / "student_mvd.pth", heads=4)
    official = torch.load(tiny / "student_mvd.pth", weights_only=True)["model"]
    stored = student.state_dict()
    assert stored.keys() == official.keys()
    assert all(torch.equal(stored[name], official[name]) for name in official)


def test_matrices_and_mask_tokens_are_the_decayed_parameters(tiny, facts):
    student = load_student(tiny / "student_mvd.pth", heads=4)
    trained = {name: p for name, p in student.named_parameters() if p.requires_grad}
    decayed = {name for name, p in trained.items() if p.ndim > 1}
    counts = {group["weight_decay"]: group["tensors"] for group in facts["student_param_groups"]}
    assert {0.05: len(decayed), 0.0: len(trained) - len(decayed)} == counts
    assert {"mask_token_img", "mask_token_vid"} <= decayed


def test_classifier_has_the_parameters_that_layer_decay_names(tiny, facts):
    classifier = load_classifier(tiny / "finetuned_mvd.pth", heads=4)
    assert {name for name, _ in classifier.named_parameters()} == facts["layer_decay"]["parameters"].keys()
