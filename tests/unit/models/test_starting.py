"""Students that start from weights of other models."""

from __future__ import annotations

import pytest
import torch

from mvd_offline.errors import CheckpointError
from mvd_offline.geometry import TokenGrid
from mvd_offline.models.loading import load_student
from mvd_offline.models.saving import save_model
from mvd_offline.models.starting import inflated, save_untrained_student, start_encoder
from mvd_offline.models.student import Student, student_of
from mvd_offline.models.vit import Arch, run_blocks
from mvd_offline.randomness import KeyedStream
from mvd_offline.recipe import load_distill

ENCODER, DECODER = Arch(48, 2, 3), Arch(32, 1, 2)


def fresh(arch: Arch = ENCODER, tubelet_size: int = 2, patch_size: int = 16) -> Student:
    torch.manual_seed(1)
    sizes = {"grid": TokenGrid(4 // tubelet_size, 3, 3), "tubelet_size": tubelet_size, "patch_size": patch_size}
    return Student(arch, **sizes, targets={"video": 40}, decoder=DECODER).eval()


def with_large_key_bias(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    for name, tensor in state.items():
        if name.endswith("attn.qkv.bias"):
            tensor[48:96] = torch.randn(48)
    return state


def saved(state: dict[str, torch.Tensor], path):
    torch.save({"model": state}, path)
    return path


def decoder_of(student: Student) -> dict[str, torch.Tensor]:
    return {name: t.clone() for name, t in student.state_dict().items() if "vid" in name}


def test_an_encoder_starts_from_a_student_with_its_norm_and_keeps_its_fresh_decoder(student, video, mask, tmp_path):
    save_model(tmp_path / "student.safetensors", student)
    started = fresh()
    before = decoder_of(started)

    start_encoder(started, tmp_path / "student.safetensors")

    assert torch.equal(started.encode(video, mask), student.encode(video, mask))
    assert all(torch.equal(tensor, before[name]) for name, tensor in decoder_of(started).items())
    assert all(parameter.requires_grad for parameter in started.parameters())


def test_an_encoder_starts_from_videomae_under_its_own_positions(videomae, video, tmp_path):
    started = fresh()
    own = started.pos_embed.clone()

    start_encoder(started, saved(videomae.state_dict(), tmp_path / "videomae.pth"))

    assert torch.equal(started.pos_embed, own)
    assert torch.equal(started.patch_embed(video), videomae.encoder.patch_embed(video))
    x = torch.randn(2, 5, 48)
    assert torch.equal(run_blocks(started.blocks, x), run_blocks(videomae.encoder.blocks, x))
    assert torch.equal(started.norm(x), videomae.encoder.norm(x))


def test_an_encoder_starts_from_a_classifier_whose_head_plays_no_part(classifier, video, tmp_path):
    started = fresh()
    start_encoder(started, saved(classifier.state_dict(), tmp_path / "classifier.pth"))
    assert torch.equal(started.encode_tokens(video), classifier.encode_tokens(video))
    assert torch.equal(started.norm.weight, torch.ones(48))


def test_an_image_encoder_embeds_a_tubelet_of_equal_frames_as_it_did_one_of_them(mae, video, tmp_path):
    state = with_large_key_bias(mae.state_dict())
    started = fresh()

    start_encoder(started, saved(state, tmp_path / "mae.pth"))

    still = video[:, :, :1].expand(-1, -1, 4, -1, -1)
    embedded = mae.patch_embed(video[:, :, :1])
    torch.testing.assert_close(started.patch_embed(still), embedded.repeat(1, 2, 1))
    x = torch.randn(2, 5, 48)
    torch.testing.assert_close(run_blocks(started.blocks, x), run_blocks(mae.blocks, x))
    assert torch.equal(started.norm(x), mae.norm(x))


def test_a_student_of_single_frames_starts_one_of_tubelets(video, tmp_path):
    images, started = fresh(tubelet_size=1), fresh()
    save_model(tmp_path / "images.safetensors", images)

    start_encoder(started, tmp_path / "images.safetensors")

    still = video[:, :, :1].expand(-1, -1, 2, -1, -1)
    torch.testing.assert_close(started.patch_embed(still), images.patch_embed(still[:, :, :1]))


def test_an_inflated_embedding_is_divided_by_the_frames():
    weight = torch.arange(2 * 3 * 4.0).view(2, 3, 2, 2)
    assert inflated(weight, 4).shape == (2, 3, 4, 2, 2)
    torch.testing.assert_close(inflated(weight, 4).sum(dim=2), weight)
    assert torch.equal(inflated(weight[:, :, None], 1)[:, :, 0], weight)


@pytest.mark.parametrize(
    ("arch", "patch_size", "message"),
    [
        (Arch(64, 2, 4), 16, "width 48, the student has 64"),
        (Arch(48, 3, 3), 16, "depth 2, the student has 3"),
        (Arch(48, 2, 2), 16, "heads 3, the student has 2"),
        (Arch(48, 2, 3), 8, "patch size 16, the student has 8"),
    ],
)
def test_an_encoder_of_another_size_is_refused_with_both_sizes(student, arch, patch_size, message, tmp_path):
    save_model(tmp_path / "student.safetensors", student)
    with pytest.raises(CheckpointError, match=f"student.init: .*{message}"):
        start_encoder(fresh(arch, patch_size=patch_size), tmp_path / "student.safetensors")


def test_tubelets_of_another_length_are_refused(student, tmp_path):
    save_model(tmp_path / "student.safetensors", student)
    with pytest.raises(CheckpointError, match="embeds tubelets of 2 frames, and the student's have 4"):
        start_encoder(fresh(tubelet_size=4), tmp_path / "student.safetensors")


def test_a_file_that_lacks_a_block_s_tensor_is_refused_with_its_name(student, tmp_path):
    state = student.state_dict()
    del state["blocks.1.mlp.fc1.weight"]
    with pytest.raises(CheckpointError, match=r"missing: blocks\.1\.mlp\.fc1\.weight"):
        start_encoder(fresh(), saved(state, tmp_path / "student.pth"))


def test_a_file_that_is_not_there_or_no_checkpoint_is_refused_by_the_key_that_names_it(student, tmp_path):
    with pytest.raises(CheckpointError, match=r"^student\.init: .*none\.pth: no such file or folder\."):
        start_encoder(student, tmp_path / "none.pth")
    (tmp_path / "text.pth").write_text("no weights")
    with pytest.raises(CheckpointError, match=r"^student\.init: .*text\.pth"):
        start_encoder(student, tmp_path / "text.pth")


@pytest.mark.parametrize("mask", ["tube", "none"])
def test_an_untrained_student_has_the_encoder_that_a_distillation_from_any_teachers_begins_with(mask, tmp_path):
    recipe = load_distill("smoke/distill_vit_s_from_vit_b_k400", [f"mask.kind={mask}", "training.seed=3"])
    save_untrained_student(tmp_path / "student.safetensors", recipe)

    torch.manual_seed(KeyedStream("init", 3).torch_seed())
    begins = student_of(recipe, {"image": 40, "video": 24}).state_dict()
    written = load_student(tmp_path / "student.safetensors").state_dict()

    encoder = [name for name in begins if name.startswith(("patch_embed.", "blocks."))]
    assert encoder
    assert all(torch.equal(written[name], begins[name]) for name in encoder)
