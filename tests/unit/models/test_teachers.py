"""Teachers: where features are taken, how weights are named, what is refused."""

from __future__ import annotations

import json

import pytest
import torch
from torch.nn import functional as F

from mvd_offline.errors import CheckpointError, RecipeError, UsageError
from mvd_offline.geometry import TokenGrid
from mvd_offline.models import load_teacher
from mvd_offline.models.checkpoints import fuse_qkv_bias
from mvd_offline.models.saving import save_model
from mvd_offline.models.teachers import teacher_for
from mvd_offline.recipe import TeacherSection, ViewSection

SMALL_VIEW = ViewSection(frames=4, image_size=48)


@pytest.fixture
def mae_file(mae, tmp_path):
    save_model(tmp_path / "mae.safetensors", mae)
    return tmp_path / "mae.safetensors"


@pytest.fixture
def videomae_file(videomae, tmp_path):
    save_model(tmp_path / "videomae.safetensors", videomae)
    return tmp_path / "videomae.safetensors"


def test_features_of_the_image_teacher_come_before_the_final_norm_without_the_class_token(mae, mae_file, video):
    teacher = load_teacher(mae_file, "image")
    features = teacher(video)
    assert features.shape == (2, 18, 48)
    frame = mae.encode_tokens(video[:, :, 2])[:, 1:]
    torch.testing.assert_close(features[:, 9:], frame)


def test_the_image_teacher_sees_the_front_frame_of_each_tubelet(mae_file, video):
    teacher = load_teacher(mae_file, "image")
    changed = video.clone()
    changed[:, :, 1::2] = 0
    assert torch.equal(teacher(changed), teacher(video))


def test_features_of_the_video_teacher_come_before_the_final_norm(videomae, videomae_file, video):
    torch.testing.assert_close(load_teacher(videomae_file, "video")(video), videomae.encoder.encode_tokens(video))


def test_a_student_can_teach_with_its_own_positions(student, video, tmp_path):
    save_model(tmp_path / "student.safetensors", student)
    teacher = load_teacher(tmp_path / "student.safetensors", "video")
    assert teacher.positions == "sincos_3d"
    torch.testing.assert_close(teacher(video), student.encode_tokens(video))


def test_a_teacher_is_frozen_and_stays_in_evaluation_mode(mae_file, video):
    teacher = load_teacher(mae_file, "image")
    teacher.train()
    assert not teacher.training
    assert not teacher(video.requires_grad_()).requires_grad
    assert not any(p.requires_grad for p in teacher.parameters())


def test_random_teachers_are_a_function_of_their_seed_and_leave_the_global_generator_alone():
    torch.manual_seed(0)
    before = torch.random.get_rng_state()
    hashes = [load_teacher(f"random:vit_tiny{seed}", "video").weights_sha256 for seed in ("", ":0", ":1")]
    assert hashes[0] == hashes[1] != hashes[2]
    assert torch.equal(torch.random.get_rng_state(), before)


def test_a_random_teacher_starts_as_officially_initialised():
    encoder = load_teacher("random:vit_tiny:0", "image").encoder
    fan = 192 + 3 * 16 * 16
    assert encoder.patch_embed.proj.weight.abs().max().item() == pytest.approx((6 / fan) ** 0.5, rel=0.01)
    assert encoder.cls_token.std().item() == pytest.approx(0.02, rel=0.3)
    assert not encoder.blocks[3].attn.qkv.bias.any()


def test_the_hash_is_of_the_tensors_in_use_whatever_the_file(videomae, videomae_file, tmp_path):
    official = {name: t for name, t in videomae.state_dict().items() if name.startswith("encoder.")}
    torch.save({"model": official, "epoch": 3}, tmp_path / "official.pth")
    fused = {name.removeprefix("encoder."): t for name, t in fuse_qkv_bias(official).items()}
    torch.save({"module": fused}, tmp_path / "fused.pth")
    files = [videomae_file, tmp_path / "official.pth", tmp_path / "fused.pth"]
    assert len({load_teacher(file, "video", heads=3).weights_sha256 for file in files}) == 1
    official["encoder.blocks.0.mlp.fc1.bias"][0] += 1e-3
    torch.save({"model": official}, tmp_path / "changed.pth")
    changed = load_teacher(tmp_path / "changed.pth", "video", heads=3)
    assert changed.weights_sha256 != load_teacher(videomae_file, "video").weights_sha256


def test_its_identity_is_json_and_says_all_that_decides_its_features(mae_file):
    identity = load_teacher(mae_file, "image", precision="bfloat16").identity()
    assert json.loads(json.dumps(identity)) == identity
    assert identity["architecture"] == {"width": 48, "depth": 2, "heads": 3, "patch": 16}
    assert identity["layer"] == "last_block_before_norm"
    assert (identity["precision"], identity["image_size"], identity["tubelet"]) == ("bfloat16", 48, 2)
    assert identity["normalisation"]["mean"] == [0.485, 0.456, 0.406]


def test_low_precision_rounds_but_returns_float32(mae_file, video):
    exact = load_teacher(mae_file, "image")(video)
    rounded = load_teacher(mae_file, "image", precision="bfloat16")(video)
    assert rounded.dtype == torch.float32
    assert 0 < F.l1_loss(rounded, exact) < 0.05


def test_an_outer_autocast_does_not_change_a_float32_teacher(mae_file, video):
    teacher = load_teacher(mae_file, "image")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = teacher(video)
    assert torch.equal(inside, teacher(video))


def test_patches_of_14_pixels_at_196_give_the_grid_of_16_at_224_with_recomputed_positions():
    view = ViewSection(frames=2)
    with torch.device("meta"):
        huge = load_teacher("random:vit_huge", "image", image_size=196, frames=2)
    assert huge.patch_size == 14
    assert huge.grid == view.grid == TokenGrid(1, 14, 14)
    assert huge.encoder.pos_embed.shape == (1, 197, 1280)


def test_positions_are_recomputed_for_another_input_size(mae_file):
    teacher = load_teacher(mae_file, "image", image_size=32, frames=2)
    assert teacher.grid == TokenGrid(1, 2, 2)
    assert teacher(torch.randn(1, 3, 2, 32, 32)).shape == (1, 4, 48)


@pytest.mark.parametrize("frames", [1, 3])
@pytest.mark.parametrize("seeded", [False, True])
def test_an_image_teacher_takes_every_frame_where_pairs_do_not_fit(mae_file, frames, seeded):
    teacher = load_teacher("random:vit_tiny" if seeded else mae_file, "image", image_size=32, frames=frames)
    assert (teacher.tubelet_size, teacher.grid) == (1, TokenGrid(frames, 2, 2))
    assert teacher(torch.randn(1, 3, frames, 32, 32)).shape == (1, 4 * frames, teacher.width)


def test_a_clip_of_another_size_than_asked_for_is_refused(mae_file, video):
    teacher = load_teacher(mae_file, "image", image_size=32, frames=4)
    with pytest.raises(UsageError, match=r"T, H, W = \(4, 32, 32\), not \(4, 48, 48\)"):
        teacher(video)


def test_a_teacher_whose_grid_is_not_the_views_is_refused_with_the_size_that_fits(mae_file):
    section = TeacherSection(weights=str(mae_file), image_size=32)
    with pytest.raises(RecipeError, match=r"set teachers\.image\.image_size: 48"):
        teacher_for(section, SMALL_VIEW, "image")


def test_pinned_weights_are_checked(mae_file):
    found = load_teacher(mae_file, "image").weights_sha256
    assert teacher_for(TeacherSection(weights=str(mae_file), sha256=found), SMALL_VIEW, "image").width == 48
    with pytest.raises(CheckpointError, match=f"has {found}"):
        teacher_for(TeacherSection(weights=str(mae_file), sha256="0" * 64), SMALL_VIEW, "image")


def test_weights_of_the_other_kind_are_refused(mae_file, videomae_file):
    with pytest.raises(CheckpointError, match="load them with kind='image'"):
        load_teacher(mae_file, "video")
    with pytest.raises(CheckpointError, match="load them with kind='video'"):
        load_teacher(videomae_file, "image")


def test_heads_that_nothing_tells_must_be_given(mae, tmp_path):
    torch.save({"model": mae.state_dict()}, tmp_path / "mae.pth")
    with pytest.raises(CheckpointError, match=r"heads of width 48 is not known.*Pass heads="):
        load_teacher(tmp_path / "mae.pth", "image")
    assert load_teacher(tmp_path / "mae.pth", "image", heads=3).arch.heads == 3


def test_heads_that_contradict_the_file_are_refused(mae_file):
    with pytest.raises(CheckpointError, match="heads=4 was given, but the file records 3"):
        load_teacher(mae_file, "image", heads=4)


def test_learned_positions_are_refused(mae, tmp_path):
    state = mae.state_dict()
    state["pos_embed"] = torch.randn(1, 10, 48)
    torch.save(state, tmp_path / "vit.pth")
    with pytest.raises(CheckpointError, match="is not MAE's 2-D sine-cosine table"):
        load_teacher(tmp_path / "vit.pth", "image", heads=3)


@pytest.mark.parametrize("text", ["random:", "random:vit_giant", "random:vit_tiny:x", "random:vit_tiny:0:1"])
def test_misspelt_random_teachers_are_refused(text):
    with pytest.raises(UsageError, match="write random:ARCH or random:ARCH:SEED"):
        load_teacher(text, "image")


def test_an_unknown_timm_name_lists_near_ones():
    with pytest.raises(CheckpointError, match=r"timm .* has no such model; near it: vit_base_patch16_224"):
        load_teacher("timm:vit_base_patch16_224.nonsense", "image")
