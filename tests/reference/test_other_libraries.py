"""Teachers and classifiers agree with transformers and timm models of random weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from mvd_offline.geometry import TokenGrid
from mvd_offline.models import load_classifier, load_student, load_teacher
from mvd_offline.models.export import Sizes, convert_checkpoint
from mvd_offline.models.image_encoder import image_position_table
from mvd_offline.models.pretraining import MAEPretrainer, VideoMAEPretrainer
from mvd_offline.models.saving import save_model
from mvd_offline.models.vit import Arch

transformers = pytest.importorskip("transformers", reason="the extra `hf` is not installed")
transformers.logging.disable_progress_bar()

SIZES = {
    "image_size": 48,
    "patch_size": 16,
    "hidden_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 192,
    "layer_norm_eps": 1e-6,
    "decoder_hidden_size": 32,
    "decoder_num_hidden_layers": 1,
    "decoder_num_attention_heads": 2,
    "decoder_intermediate_size": 128,
}


def assert_close(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)


def randomise(model: torch.nn.Module) -> torch.nn.Module:
    """Weights far from their initial values, so that no bias is zero and no norm is trivial. Tables stay."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "position_embeddings" not in name and "pos_embed" not in name:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


@pytest.fixture
def video() -> torch.Tensor:
    return torch.randn(2, 3, 4, 48, 48, generator=torch.Generator().manual_seed(1))


def videomae(kind: str, **extra) -> torch.nn.Module:
    config = transformers.VideoMAEConfig(**SIZES, num_frames=4, tubelet_size=2, **extra)
    return randomise(getattr(transformers, kind)(config))


def vitmae(kind: str) -> torch.nn.Module:
    model = randomise(getattr(transformers, kind)(transformers.ViTMAEConfig(**SIZES, mask_ratio=0.0)))
    embeddings = getattr(model, "vit", model).embeddings
    # Some releases of transformers leave the table zero until weights are loaded.
    embeddings.position_embeddings.data.copy_(image_position_table(48, 3, 3))
    return model


def save(model: torch.nn.Module, folder: Path, names: str) -> Path:
    if names == "hub":
        model.save_pretrained(folder)
    else:
        model.save_pretrained(folder, save_original_format=False)
    return folder


def last_hidden(model, video: torch.Tensor) -> torch.Tensor:
    base = getattr(model, "videomae", model)
    return base(video.transpose(1, 2), output_hidden_states=True).hidden_states[-1]


@pytest.mark.parametrize("names", ["hub", "new"])
@pytest.mark.parametrize("kind", ["VideoMAEModel", "VideoMAEForPreTraining", "VideoMAEForVideoClassification"])
def test_video_teacher_equals_videomae_before_its_final_norm(kind, names, video, tmp_path):
    model = videomae(kind, use_mean_pooling=True)
    teacher = load_teacher(save(model, tmp_path, names), "video")
    assert teacher.arch == Arch(48, 2, 3)
    with torch.no_grad():
        assert_close(teacher(video), last_hidden(model, video))


def test_video_teacher_leaves_out_the_final_norm(video, tmp_path):
    model = videomae("VideoMAEModel", use_mean_pooling=False)
    teacher = load_teacher(save(model, tmp_path, "hub"), "video")
    with torch.no_grad():
        expected = model(video.transpose(1, 2)).last_hidden_state
        assert_close(model.layernorm(teacher(video)), expected)


@pytest.mark.parametrize("names", ["hub", "new"])
@pytest.mark.parametrize("kind", ["ViTMAEModel", "ViTMAEForPreTraining"])
def test_image_teacher_equals_vitmae_without_its_shuffle_and_final_norm(kind, names, video, tmp_path):
    model = vitmae(kind)
    teacher = load_teacher(save(model, tmp_path, names), "image")
    base = getattr(model, "vit", model)
    frames = video[:, :, ::2].transpose(1, 2).flatten(0, 1)
    noise = torch.arange(9.0).expand(len(frames), -1)
    with torch.no_grad():
        expected = base(frames, noise=noise).last_hidden_state[:, 1:].reshape(2, 18, 48)
        assert_close(base.layernorm(teacher(video)), expected)


@pytest.mark.parametrize("names", ["hub", "new"])
def test_classifier_equals_videomae_for_video_classification(names, video, tmp_path):
    model = videomae("VideoMAEForVideoClassification", use_mean_pooling=True, num_labels=5)
    classifier = load_classifier(save(model, tmp_path, names))
    assert classifier.positions == "interleaved_1d"
    with torch.no_grad():
        assert_close(classifier(video), model(video.transpose(1, 2)).logits)


def test_our_videomae_pretraining_equals_theirs(video, tmp_path):
    model = VideoMAEPretrainer(
        Arch(48, 2, 3), grid=TokenGrid(2, 3, 3), patch_size=16, tubelet_size=2, decoder=Arch(32, 1, 2)
    )
    randomise(model)
    save_model(tmp_path / "videomae.safetensors", model)
    convert_checkpoint(tmp_path / "videomae.safetensors", "hf", tmp_path / "hf")
    theirs, info = transformers.VideoMAEForPreTraining.from_pretrained(tmp_path / "hf", output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    mask = torch.zeros(2, 18, dtype=torch.bool)
    mask[:, [1, 4, 5, 10, 13, 14]] = True
    with torch.no_grad():
        assert_close(model(video, mask), theirs.eval()(video.transpose(1, 2), bool_masked_pos=mask).loss)


def test_our_mae_pretraining_equals_theirs(video, tmp_path):
    model = randomise(MAEPretrainer(Arch(48, 2, 3), image_size=48, patch_size=16, decoder=Arch(32, 1, 2)))
    save_model(tmp_path / "mae.safetensors", model)
    convert_checkpoint(tmp_path / "mae.safetensors", "hf", tmp_path / "hf")
    theirs, info = transformers.ViTMAEForPreTraining.from_pretrained(tmp_path / "hf", output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    theirs.config.mask_ratio = 6 / 9
    images = video[:, :, 0]
    noise = torch.arange(9.0).expand(2, -1)
    mask = torch.zeros(2, 9, dtype=torch.bool)
    mask[:, 3:] = True
    with torch.no_grad():
        assert_close(model(images, mask), theirs.eval()(images, noise=noise).loss)


def test_a_student_in_transformers_needs_mvds_table_and_then_agrees(tiny, vectors, tmp_path):
    converted = convert_checkpoint(tiny / "student_mvd.pth", "hf", tmp_path, Sizes(heads=4))
    assert "positions.safetensors" in converted.notes[0]
    from safetensors.torch import load_file

    model = transformers.VideoMAEModel.from_pretrained(tmp_path).eval()
    model.embeddings.position_embeddings = load_file(tmp_path / "positions.safetensors")["position_embeddings"]
    student = load_student(tiny / "student_mvd.pth", heads=4)
    with torch.no_grad():
        theirs = model(vectors["video"].transpose(1, 2), bool_masked_pos=vectors["mask"]).last_hidden_state
        assert_close(student.encode(vectors["video"], vectors["mask"]), theirs)


# ---- timm --------------------------------------------------------------------------------------------------------


@pytest.fixture
def timm_vit() -> torch.nn.Module:
    import timm

    sizes = {"img_size": 48, "embed_dim": 48, "depth": 2, "num_heads": 3}
    model = randomise(timm.create_model("vit_base_patch16_224", num_classes=0, **sizes))
    model.pos_embed.data.copy_(image_position_table(48, 3, 3))
    return model


def test_image_teacher_equals_timm_before_its_final_norm(timm_vit, video, tmp_path):
    torch.save(timm_vit.state_dict(), tmp_path / "timm.pth")
    teacher = load_teacher(tmp_path / "timm.pth", "image", heads=3)
    assert teacher.image_size == 48
    frames = video[:, :, ::2].transpose(1, 2).flatten(0, 1)
    with torch.no_grad():
        expected = timm_vit.forward_features(frames)[:, 1:].reshape(2, 18, 48)
        assert_close(timm_vit.norm(teacher(video)), expected)


def test_what_convert_writes_for_timm_loads_strictly(timm_vit, tmp_path):
    model = MAEPretrainer(Arch(48, 2, 3), image_size=48, patch_size=16, decoder=Arch(32, 1, 2))
    save_model(tmp_path / "mae.safetensors", model)
    convert_checkpoint(tmp_path / "mae.safetensors", "timm", tmp_path / "timm.pth")
    timm_vit.load_state_dict(torch.load(tmp_path / "timm.pth", weights_only=True), strict=True)


# ---- what `pretrain` leaves --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def products(tmp_path_factory) -> dict[str, Path]:
    """Teachers that the command line trained, MAE on images and VideoMAE on videos, as official files."""
    from mvd_offline.cli.main import main
    from mvd_offline.video.synthetic import synthesize

    folder = tmp_path_factory.mktemp("products")
    found = {}
    for method, twin in (("mae", "mae_vit_h"), ("videomae", "videomae_vit_s_k400")):
        root, catalog, run = folder / method, folder / f"{method}.parquet", folder / f"run_{method}"
        synthesize(root, videos_per_class=2, classes=2, images=method == "mae", short_side=(40, 48), frames=(12, 16))
        assert main(["videos", "scan", str(root), "--out", str(catalog), "--workers", "1"]) == 0
        words = ["pretrain", f"smoke/pretrain_{twin}", "--videos", str(catalog), "--run", str(run)]
        assert main([*words, "--set", "training.tensorboard=false"]) == 0
        found[method] = run / "teacher.safetensors"
        found[f"{method}.pth"] = folder / f"{method}.pth"
        convert_checkpoint(found[method], "mvd", found[f"{method}.pth"])
    return found


@pytest.mark.parametrize(("kind", "method"), [("image", "mae"), ("video", "videomae")])
def test_a_product_and_its_official_file_are_the_same_teacher(kind, method, products):
    # The official layouts record no number of heads.
    product, official = (load_teacher(products[name], kind, heads=2) for name in (method, f"{method}.pth"))
    assert product.weights_sha256 == official.weights_sha256
    assert product.positions == official.positions


def test_official_files_have_the_official_containers_and_names(products):
    for method, names in (
        ("mae", {"cls_token", "blocks.0.attn.qkv.bias", "decoder_blocks.1.attn.qkv.weight", "decoder_pred.bias"}),
        ("videomae", {"encoder.blocks.0.attn.q_bias", "encoder_to_decoder.weight", "mask_token", "decoder.head.bias"}),
    ):
        state = torch.load(products[f"{method}.pth"], weights_only=True)["model"]
        assert names <= state.keys()
        assert ("pos_embed" in state) == (method == "mae")  # VideoMAE's table is no tensor of its files


def test_a_product_of_mae_is_a_model_of_transformers_and_of_timm(products, tmp_path):
    import timm

    teacher = load_teacher(products["mae"], "image", frames=1, image_size=28, tubelet_size=1)
    images = torch.randn(2, 3, 28, 28, generator=torch.Generator().manual_seed(2))
    convert_checkpoint(products["mae"], "hf", tmp_path / "hf")
    theirs, info = transformers.ViTMAEForPreTraining.from_pretrained(tmp_path / "hf", output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    theirs.config.mask_ratio = 0.0
    convert_checkpoint(products["mae"], "timm", tmp_path / "timm.safetensors")
    sizes = {"img_size": 28, "patch_size": 7, "embed_dim": 64, "depth": 2, "num_heads": 2, "num_classes": 0}
    model = timm.create_model("vit_base_patch16_224", checkpoint_path=str(tmp_path / "timm.safetensors"), **sizes)
    with torch.no_grad():
        tokens = teacher(images[:, :, None])
        noise = torch.arange(16.0).expand(2, -1)
        assert_close(theirs.vit.layernorm(tokens), theirs.vit.eval()(images, noise=noise).last_hidden_state[:, 1:])
        assert_close(model.norm(tokens), model.eval().forward_features(images)[:, 1:])


def test_a_product_of_videomae_is_a_model_of_transformers(products, tmp_path):
    convert_checkpoint(products["videomae"], "hf", tmp_path)
    theirs, info = transformers.VideoMAEForPreTraining.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    video = torch.randn(2, 3, 4, 32, 32, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        hidden = theirs.videomae.eval()(video.transpose(1, 2), output_hidden_states=True).hidden_states[-1]
        assert_close(load_teacher(products["videomae"], "video")(video), hidden)
