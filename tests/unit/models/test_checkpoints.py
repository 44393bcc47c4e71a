"""Reading and strict loading."""

from __future__ import annotations

import argparse
import json
import os

import pytest
import torch
from safetensors.torch import save_file

from mvd_offline.errors import CheckpointError
from mvd_offline.models import load_student, load_teacher
from mvd_offline.models.checkpoints import fuse_qkv_bias, read_checkpoint, split_qkv_bias


@pytest.fixture
def official(student, tmp_path):
    """Write the student's tensors, changed by `edit`, as an official file."""

    def write(edit=lambda state: None, **beside):
        state = dict(student.state_dict())
        edit(state)
        torch.save({"model": state, **beside}, tmp_path / "student.pth")
        return tmp_path / "student.pth"

    return write


def load(path):
    return load_student(path, heads=3, decoder_heads=2)


def test_an_official_file_with_optimizer_and_arguments_beside_the_weights_loads(official, student):
    path = official(optimizer={"state": {}}, epoch=399, args=argparse.Namespace(lr=1.5e-4, model="x"))
    assert torch.equal(load(path).state_dict()["norm.weight"], student.norm.weight)


def test_a_missing_tensor_is_listed(official):
    with pytest.raises(CheckpointError, match=r"the student\. missing: blocks\.0\.attn\.q_bias, norm\.bias$"):
        load(official(lambda state: [state.pop(name) for name in ("norm.bias", "blocks.0.attn.q_bias")]))


def test_an_unexpected_tensor_is_listed(official):
    with pytest.raises(CheckpointError, match=r"unexpected: blocks\.0\.gamma_1$"):
        load(official(lambda state: state.update({"blocks.0.gamma_1": torch.ones(48)})))


def test_a_misshapen_tensor_is_listed_with_both_shapes(official):
    with pytest.raises(CheckpointError, match=r"misshapen: norm\.bias \(found \(47,\), needed \(48,\)\)$"):
        load(official(lambda state: state.update({"norm.bias": torch.zeros(47)})))


def test_an_unexpected_tensor_in_a_teacher_is_an_error_while_decoders_and_heads_are_not(mae, tmp_path):
    state = {**mae.state_dict(), "head.weight": torch.zeros(10, 48), "head.bias": torch.zeros(10)}
    torch.save({"model": state}, tmp_path / "mae.pth")
    load_teacher(tmp_path / "mae.pth", "image", heads=3)
    torch.save({"model": {**state, "blocks.1.ls1.gamma": torch.ones(48)}}, tmp_path / "mae.pth")
    with pytest.raises(CheckpointError, match=r"does not fit the image teacher\. unexpected: blocks\.1\.ls1\.gamma$"):
        load_teacher(tmp_path / "mae.pth", "image", heads=3)


@pytest.mark.parametrize("prefix", ["backbone.", "module.", "_orig_mod."])
def test_wrappers_prefixes_are_stripped(prefix, official):
    def wrap(state):
        for name in list(state):
            state[prefix + name] = state.pop(name)

    load(official(wrap))


def test_half_precision_files_become_float32(official):
    def halve(state):
        for name, tensor in list(state.items()):
            state[name] = tensor.half()

    loaded = load(official(halve))
    assert {p.dtype for p in loaded.state_dict().values()} == {torch.float32}


def test_a_student_with_a_fused_bias_loads_without_its_key_part(official, student, video, mask):
    def fuse(state):
        fused = fuse_qkv_bias(state)
        state.clear()
        state.update(fused)

    torch.testing.assert_close(load(official(fuse))(video, mask)["image"], student(video, mask)["image"])


def test_fusing_and_splitting_biases_are_inverse():
    state = {"a.attn.q_bias": torch.randn(4), "a.attn.v_bias": torch.randn(4), "b": torch.randn(2)}
    fused = fuse_qkv_bias(state)
    assert torch.equal(fused["a.attn.qkv.bias"][4:8], torch.zeros(4))
    split = split_qkv_bias(fused)
    assert split.keys() == state.keys()
    assert all(torch.equal(split[name], state[name]) for name in state)


class Payload:
    """Would run a command when unpickled."""

    def __reduce__(self):
        return os.system, ("true",)


def test_files_that_would_run_code_are_refused(tmp_path):
    torch.save({"model": {"w": torch.zeros(1)}, "args": Payload()}, tmp_path / "bad.pth")
    with pytest.raises(CheckpointError, match="weights_only=True"):
        read_checkpoint(tmp_path / "bad.pth")


def test_files_that_are_no_checkpoints_say_what_they_hold(tmp_path):
    with pytest.raises(CheckpointError, match="no such file or folder"):
        read_checkpoint(tmp_path / "nothing.pth")
    (tmp_path / "garbage.pth").write_bytes(b"garbage")
    with pytest.raises(CheckpointError, match="cannot read it"):
        read_checkpoint(tmp_path / "garbage.pth")
    (tmp_path / "garbage.safetensors").write_bytes(b"garbage!")
    with pytest.raises(CheckpointError, match="not readable as safetensors"):
        read_checkpoint(tmp_path / "garbage.safetensors")
    torch.save({"weights": {"a": torch.zeros(1)}}, tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match="its keys are: weights"):
        read_checkpoint(tmp_path / "other.pth")
    torch.save({"conv1.weight": torch.zeros(1)}, tmp_path / "resnet.pth")
    with pytest.raises(CheckpointError, match=r"none of the known layouts.*It holds: conv1\.weight"):
        read_checkpoint(tmp_path / "resnet.pth")
    with pytest.raises(CheckpointError, match=r"config\.json"):
        read_checkpoint(tmp_path)


def test_a_folder_of_several_shards_is_read_whole(classifier, tmp_path):
    state = classifier.state_dict()
    names = sorted(state)
    index = {}
    for part, chosen in enumerate((names[::2], names[1::2])):
        save_file({name: state[name] for name in chosen}, tmp_path / f"model-{part}.safetensors")
        index |= dict.fromkeys(chosen, f"model-{part}.safetensors")
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    (tmp_path / "config.json").write_text("{}")
    assert read_checkpoint(tmp_path).state.keys() == state.keys()


def test_layouts_are_told_apart(student, classifier, videomae, mae, tmp_path):
    layouts = {}
    for name, model in {"s": student, "c": classifier, "v": videomae, "m": mae}.items():
        torch.save(model.state_dict(), tmp_path / f"{name}.pth")
        layouts[name] = read_checkpoint(tmp_path / f"{name}.pth").layout
    assert layouts == {"s": "mvd_student", "c": "classifier", "v": "videomae_pretrain", "m": "mae"}
