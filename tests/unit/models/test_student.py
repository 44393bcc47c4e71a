"""The student: what it sees, what it predicts, what it stores."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors import safe_open

from mvd_offline.errors import CheckpointError, UsageError
from mvd_offline.models import load_student
from mvd_offline.models.saving import save_model
from mvd_offline.models.student import Student, build_student
from mvd_offline.recipe import DecoderSection, StudentSection, ViewSection


def test_it_predicts_each_teacher_at_the_masked_tokens(student, video, mask):
    predictions = student(video, mask)
    assert {name: tuple(p.shape) for name, p in predictions.items()} == {"image": (2, 12, 24), "video": (2, 12, 40)}


def test_masked_pixels_do_not_reach_it(student, video, mask):
    hidden = mask.view(2, 1, 2, 3, 3).repeat_interleave(2, 2).repeat_interleave(16, 3).repeat_interleave(16, 4)
    changed = torch.where(hidden, torch.randn_like(video), video)
    assert torch.equal(student(changed, mask)["video"], student(video, mask)["video"])
    assert not torch.equal(student(changed, ~mask)["video"], student(video, ~mask)["video"])


def test_only_the_decoders_of_active_teachers_are_built(make_student, video, mask):
    student = make_student(targets={"video": 40})
    assert student(video, mask).keys() == {"video"}
    assert not any("img" in name for name in student.state_dict())


def test_telling_the_number_of_masked_tokens_changes_nothing(student, video, mask):
    assert torch.equal(student(video, mask, 12)["image"], student(video, mask)["image"])


def test_it_compiles_into_one_graph(student, video, mask):
    student.train()
    compiled = torch.compile(student, backend="eager", fullgraph=True)
    assert torch.equal(compiled(video, mask, 12)["image"], student(video, mask, 12)["image"])
    noise = torch.rand(2, student.drop_path_sites)
    some = torch.stack([row.nonzero().flatten()[:5] for row in mask])
    assert torch.equal(compiled(video, mask, 12, noise, some)["video"], student(video, mask, 12, noise, some)["video"])


def test_position_tables_are_stored_and_never_trained(student):
    trained = {name for name, _ in student.named_parameters()}
    tables = {"pos_embed", "pos_embed_img", "pos_embed_vid"}
    assert tables <= student.state_dict().keys()
    assert not tables & trained


def test_every_parameter_receives_a_gradient(student, video, mask):
    sum(p.square().mean() for p in student(video, mask).values()).backward()
    assert [name for name, p in student.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_drop_noise_makes_a_training_step_independent_of_the_batch_it_is_in(make_student, video, mask):
    student = make_student(drop_path=0.5).train()
    noise = torch.rand(2, student.drop_path_sites, generator=torch.Generator().manual_seed(0))
    together = student(video, mask, 12, noise)["image"]
    alone = [student(video[i : i + 1], mask[i : i + 1], 12, noise[i : i + 1])["image"] for i in range(2)]
    torch.testing.assert_close(together, torch.cat(alone))


def test_initialisation_is_the_official_one():
    torch.manual_seed(0)
    section = StudentSection(width=64, depth=2, heads=4)
    student = build_student(section, ViewSection(), {"image": 48})
    bound = (6 / (64 + 192)) ** 0.5
    assert student.blocks[0].attn.qkv.weight.abs().max().item() == pytest.approx(bound, rel=0.01)
    assert student.mask_token_img.abs().max() <= 0.02
    assert student.mask_token_img.std() > 0.005
    biases = [p for name, p in student.named_parameters() if name.endswith("bias") and "patch_embed" not in name]
    assert not any(bias.any() for bias in biases)


def test_other_clip_sizes_and_mask_shapes_are_refused(student, video, mask):
    with pytest.raises(UsageError, match="4 frames of 48 x 48 pixels"):
        student(torch.zeros(2, 3, 4, 48, 96)[..., :48].repeat(1, 1, 2, 1, 1), mask)
    with pytest.raises(UsageError, match=r"the mask has shape \(2, 9\)"):
        student(video, mask[:, :9])


def test_unknown_targets_are_refused(make_student):
    with pytest.raises(UsageError, match="allowed: image, video"):
        make_student(targets={"audio": 8})


def test_our_own_file_needs_no_arguments_and_keeps_every_bit(student, video, mask, tmp_path):
    save_model(tmp_path / "student.safetensors", student, recipe="kind: distill\n")
    with safe_open(tmp_path / "student.safetensors", "pt") as reader:
        metadata = reader.metadata()
    assert metadata["format"] == "mvd-offline student"
    assert metadata["heads"] == "3"
    assert metadata["recipe"] == "kind: distill\n"
    assert Student.from_config(json.loads(metadata["config"])).state_dict().keys() == student.state_dict().keys()
    loaded = load_student(tmp_path / "student.safetensors")
    assert torch.equal(loaded(video, mask)["video"], student(video, mask)["video"])


def test_equal_students_give_equal_files(student, tmp_path):
    for name in ("a", "b"):
        save_model(tmp_path / name, student)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]


def test_a_file_whose_positions_are_not_the_formula_is_refused(student, tmp_path):
    state = student.state_dict()
    state["pos_embed_vid"] = state["pos_embed_vid"] + 0.1
    torch.save({"model": state}, tmp_path / "student.pth")
    with pytest.raises(CheckpointError, match="pos_embed_vid is not MVD's 3-D sine-cosine table"):
        load_student(tmp_path / "student.pth", heads=3, decoder_heads=2)


def test_a_full_size_student_runs_from_its_file(tmp_path):
    section = StudentSection(arch="vit_small", decoder=DecoderSection(depth=2))
    save_model(tmp_path / "vit_s.safetensors", build_student(section, ViewSection(), {"image": 768, "video": 768}))
    student = load_student(tmp_path / "vit_s.safetensors", heads=6)
    mask = torch.ones(1, 8, 196, dtype=torch.bool)
    mask[:, :, torch.randperm(196)[:20]] = False
    with torch.no_grad():
        predictions = student(torch.randn(1, 3, 16, 224, 224), mask.flatten(1))
    assert {name: tuple(p.shape) for name, p in predictions.items()} == {
        "image": (1, 1408, 768),
        "video": (1, 1408, 768),
    }
