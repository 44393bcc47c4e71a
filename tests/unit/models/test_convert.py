"""Conversions: there and back is the same, tensor for tensor."""

from __future__ import annotations

import json

import pytest
import torch

from mvd_offline.cli.main import main
from mvd_offline.errors import CheckpointError, UsageError
from mvd_offline.models import load_classifier, load_student, load_teacher
from mvd_offline.models.checkpoints import fuse_qkv_bias, read_checkpoint
from mvd_offline.models.export import Sizes, convert_checkpoint

SIZES = Sizes(heads=3, decoder_heads=2, image_size=48, frames=4)


def official(model, path, container="model"):
    torch.save({container: model.state_dict()}, path)
    return path


def assert_same_tensors(path, state):
    loaded = torch.load(path, weights_only=True)
    (found,) = loaded.values()
    assert found.keys() == state.keys()
    assert [name for name in state if not torch.equal(found[name], state[name])] == []


@pytest.mark.parametrize("through", ["hf", "safetensors"])
@pytest.mark.parametrize("name", ["mae", "videomae", "classifier"])
def test_official_to_another_format_and_back_keeps_every_tensor(name, through, request, tmp_path):
    model = request.getfixturevalue(name)
    there = tmp_path / ("there.safetensors" if through == "safetensors" else "there")
    convert_checkpoint(official(model, tmp_path / "a.pth"), through, there, SIZES)
    convert_checkpoint(there, "mvd", tmp_path / "b.pth")
    assert_same_tensors(tmp_path / "b.pth", model.state_dict())


def test_a_student_to_safetensors_and_back_keeps_every_tensor(student, tmp_path):
    convert_checkpoint(official(student, tmp_path / "a.pth"), "safetensors", tmp_path / "s.safetensors", SIZES)
    convert_checkpoint(tmp_path / "s.safetensors", "mvd", tmp_path / "b.pth")
    assert_same_tensors(tmp_path / "b.pth", student.state_dict())


def test_a_student_with_fused_biases_converts_to_split_ones(student, tmp_path):
    torch.save({"model": fuse_qkv_bias(student.state_dict())}, tmp_path / "fused.pth")
    convert_checkpoint(tmp_path / "fused.pth", "safetensors", tmp_path / "s.safetensors", SIZES)
    found = load_student(tmp_path / "s.safetensors").state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in student.state_dict().items())


def test_outputs_stay_the_same_through_every_format(mae, videomae, classifier, video, tmp_path):
    for name, model, formats in (
        ("mae", mae, ("hf", "timm", "safetensors", "mvd")),
        ("videomae", videomae, ("hf", "safetensors", "mvd")),
    ):
        kind = "image" if name == "mae" else "video"
        source = official(model, tmp_path / f"{name}.pth")
        expected = load_teacher(source, kind, heads=3)(video)
        for to in formats:
            out = tmp_path / f"{name}-{to}{'' if to == 'hf' else '.safetensors' if to == 'safetensors' else '.pth'}"
            convert_checkpoint(source, to, out, SIZES)
            assert torch.equal(load_teacher(out, kind, heads=3)(video), expected)
    convert_checkpoint(official(classifier, tmp_path / "c.pth", "module"), "hf", tmp_path / "c", SIZES)
    assert torch.equal(load_classifier(tmp_path / "c")(video), classifier(video))


def test_positions_of_a_classifier_survive_a_folder(classifier, tmp_path):
    source = official(classifier, tmp_path / "c.pth", "module")
    for positions in ("sincos_3d", "interleaved_1d"):
        sizes = Sizes(heads=3, image_size=48, frames=4, positions=positions)
        converted = convert_checkpoint(source, "hf", tmp_path / positions, sizes)
        assert load_classifier(tmp_path / positions).positions == positions
        assert bool(converted.notes) == (positions == "sincos_3d")


def test_a_bare_videomae_encoder_keeps_its_positions_in_an_official_file(videomae, video, tmp_path):
    encoder = {name: t for name, t in videomae.state_dict().items() if name.startswith("encoder.")}
    torch.save({"model": encoder}, tmp_path / "encoder.pth")
    convert_checkpoint(tmp_path / "encoder.pth", "hf", tmp_path / "hf", SIZES)
    assert json.loads((tmp_path / "hf" / "config.json").read_text())["architectures"] == ["VideoMAEModel"]
    convert_checkpoint(tmp_path / "hf", "mvd", tmp_path / "back.pth")
    assert read_checkpoint(tmp_path / "back.pth").positions == "interleaved_1d"
    assert_same_tensors(tmp_path / "back.pth", encoder)


def test_a_students_decoders_are_reported_as_left_out_of_a_folder(student, tmp_path):
    converted = convert_checkpoint(official(student, tmp_path / "a.pth"), "hf", tmp_path / "hf", SIZES)
    assert {"mask_token_img", "decoder_vid.head.weight", "down_img.bias"} <= set(converted.dropped)
    assert any("position_embeddings" in note for note in converted.notes)


def test_video_weights_have_no_place_in_timm(student, tmp_path):
    with pytest.raises(CheckpointError, match="timm has no video Vision Transformer"):
        convert_checkpoint(official(student, tmp_path / "a.pth"), "timm", tmp_path / "t.pth")


def test_a_classifier_of_images_has_no_place_in_a_folder_and_keeps_its_head_elsewhere(mae, tmp_path):
    # As official MAE fine-tuning leaves it: a mean over tokens, then fc_norm in place of norm.
    encoder = {n: t for n, t in mae.state_dict().items() if not n.startswith(("decoder_", "mask_token", "norm."))}
    head = {"fc_norm.weight": torch.ones(48), "fc_norm.bias": torch.zeros(48), "head.weight": torch.ones(5, 48)}
    torch.save({"model": encoder | head | {"head.bias": torch.zeros(5)}}, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match=r"no place for fc_norm\.weight.*head\.bias.*timm, safetensors, mvd"):
        convert_checkpoint(tmp_path / "a.pth", "hf", tmp_path / "hf", SIZES)
    assert not (tmp_path / "hf").exists()
    for to, out in (("timm", "t.safetensors"), ("safetensors", "s.safetensors"), ("mvd", "b.pth")):
        assert not convert_checkpoint(tmp_path / "a.pth", to, tmp_path / out, SIZES).dropped
        assert head.keys() < read_checkpoint(tmp_path / out).state.keys()


def test_a_part_of_a_block_that_a_folder_has_no_place_for_is_named(mae, tmp_path):
    torch.save({"model": mae.state_dict() | {"blocks.0.ls1.gamma": torch.ones(48)}}, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match=r"no place for blocks\.0\.ls1\.gamma"):
        convert_checkpoint(tmp_path / "a.pth", "hf", tmp_path / "hf", SIZES)


@pytest.mark.parametrize(("to", "out"), [("mvd", "x.safetensors"), ("safetensors", "x.pth"), ("hf", "x.pth")])
def test_an_output_name_of_another_format_is_refused(to, out, student, tmp_path):
    with pytest.raises(UsageError, match="this target writes a"):
        convert_checkpoint(official(student, tmp_path / "a.pth"), to, tmp_path / out, SIZES)


def test_the_command_converts_and_reports(student, tmp_path, capsys):
    source = official(student, tmp_path / "a.pth")
    arguments = ["convert", str(source), "--out", str(tmp_path / "s.safetensors"), "--to", "safetensors", "--json"]
    assert main([*arguments, "--heads", "3", "--decoder-heads", "2"]) == 0
    assert json.loads(capsys.readouterr().out)["layout"] == "mvd_student"
    assert load_student(tmp_path / "s.safetensors").arch.heads == 3


def test_the_command_explains_what_is_missing(student, tmp_path, capsys):
    source = official(student, tmp_path / "a.pth")
    assert main(["convert", str(source), "--to", "safetensors", "--out", str(tmp_path / "s.safetensors")]) == 1
    assert "Pass heads=" in capsys.readouterr().err
