"""What `convert` writes gives, in the programs it is for, the outputs of the model that it was written from."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

from mvd_offline.cli.main import main
from mvd_offline.errors import CheckpointError, UsageError
from mvd_offline.geometry import TokenGrid
from mvd_offline.models import graphs, load_classifier
from mvd_offline.models.classifier import Classifier
from mvd_offline.models.export import convert_checkpoint
from mvd_offline.models.saving import save_model
from mvd_offline.models.student import Student
from mvd_offline.models.vit import Arch

transformers = pytest.importorskip("transformers", reason="the extra `hf` is not installed")
transformers.logging.disable_progress_bar()

VIT_S, TINY = Arch(384, 2, 6), Arch(48, 1, 3)
CLIPS, IMAGES = TokenGrid(2, 3, 3), TokenGrid(1, 3, 3)


def randomised(model):
    """Weights far from their initial values, so that no bias is zero and no norm is trivial."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def saved(model, path: Path) -> Path:
    save_model(path, model)
    return path


def a_student(grid=CLIPS, tubelet_size=2, arch=VIT_S) -> Student:
    options = {"targets": {"image": 24, "video": 40}, "decoder": Arch(32, 1, 2)}
    return randomised(Student(arch, grid=grid, tubelet_size=tubelet_size, **options))


def a_classifier(grid=CLIPS, tubelet_size=2, positions="sincos_3d", arch=VIT_S) -> Classifier:
    return randomised(Classifier(arch, grid=grid, tubelet_size=tubelet_size, classes=5, positions=positions))


def assert_equal(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)


@pytest.fixture
def video() -> torch.Tensor:
    return torch.randn(2, 3, 4, 48, 48, generator=torch.Generator().manual_seed(1))


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """The code that folders bring is copied where transformers keeps such code: here, for the time of a test."""
    monkeypatch.setattr(transformers.dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", list(sys.path))


@pytest.fixture
def warnings_of_transformers(caplog):
    transformers.logging.enable_propagation()
    yield caplog
    transformers.logging.disable_propagation()


# ---- transformers ------------------------------------------------------------------------------------------------


def test_a_student_is_a_model_of_transformers_with_its_own_positions(video, tmp_path, warnings_of_transformers):
    student = a_student()
    convert_checkpoint(saved(student, tmp_path / "s.safetensors"), "hf", tmp_path / "s")
    model = transformers.AutoModel.from_pretrained(tmp_path / "s", trust_remote_code=True).eval()
    assert not [record for record in warnings_of_transformers.records if "UNEXPECTED" in record.getMessage()]
    with torch.no_grad():
        assert_equal(model(video.transpose(1, 2)).last_hidden_state, student.encode(video))


def test_a_classifier_gives_the_same_logits_there_and_when_saved_again(video, tmp_path):
    classifier = a_classifier()
    convert_checkpoint(saved(classifier, tmp_path / "c.safetensors"), "hf", tmp_path / "c")
    load = transformers.AutoModelForVideoClassification.from_pretrained
    model = load(tmp_path / "c", trust_remote_code=True).eval()
    model.save_pretrained(tmp_path / "again")
    with torch.no_grad():
        expected = classifier(video)
        assert_equal(model(video.transpose(1, 2)).logits, expected)
        assert_equal(load(tmp_path / "again", trust_remote_code=True).eval()(video.transpose(1, 2)).logits, expected)
        assert_equal(load_classifier(tmp_path / "again")(video), expected)


def test_a_classifier_with_videomaes_positions_needs_no_code_of_ours(video, tmp_path):
    classifier = a_classifier(positions="interleaved_1d")
    convert_checkpoint(saved(classifier, tmp_path / "c.safetensors"), "hf", tmp_path / "c")
    assert not (tmp_path / "c" / "modeling_mvd.py").exists()
    model = transformers.VideoMAEForVideoClassification.from_pretrained(tmp_path / "c").eval()
    with torch.no_grad():
        assert_equal(model(video.transpose(1, 2)).logits, classifier(video))


def test_a_class_with_other_positions_says_how_to_load_the_folder(tmp_path, warnings_of_transformers):
    convert_checkpoint(saved(a_student(), tmp_path / "s.safetensors"), "hf", tmp_path / "s")
    transformers.VideoMAEModel.from_pretrained(tmp_path / "s")
    assert "load_with_trust_remote_code" in warnings_of_transformers.text


def test_a_student_starts_a_classifier_there_for_clips_of_another_length(tmp_path):
    student = a_student()
    convert_checkpoint(saved(student, tmp_path / "s.safetensors"), "hf", tmp_path / "s")
    model = transformers.AutoModelForVideoClassification.from_pretrained(
        tmp_path / "s", trust_remote_code=True, num_labels=7, use_mean_pooling=True, num_frames=8
    )
    assert model(torch.zeros(1, 8, 3, 48, 48)).logits.shape == (1, 7)
    weight = model.videomae.encoder.layer[1].attention.attention.query.bias
    assert torch.equal(weight, student.blocks[1].attn.q_bias)


def test_the_image_processor_makes_what_our_normalisation_makes(tmp_path):
    from mvd_offline.models.inputs import normalize

    convert_checkpoint(saved(a_classifier(), tmp_path / "c.safetensors"), "hf", tmp_path / "c")
    pixels = torch.randint(0, 256, (4, 48, 48, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(2))
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path / "c")
    made = processor([frame.numpy() for frame in pixels], return_tensors="pt")["pixel_values"]
    assert_equal(made.transpose(1, 2), normalize(pixels[None]))


# ---- timm --------------------------------------------------------------------------------------------------------


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randn(2, 3, 48, 48, generator=torch.Generator().manual_seed(3))


def test_a_student_of_images_is_a_model_of_timm(images, tmp_path):
    import timm

    student = a_student(IMAGES, tubelet_size=1)
    convert_checkpoint(saved(student, tmp_path / "s.safetensors"), "timm", tmp_path / "s")
    model = timm.create_model(f"local-dir:{tmp_path / 's'}", pretrained=True).eval()
    with torch.no_grad():
        assert_equal(model.forward_features(images), student.encode(images[:, :, None]))


def test_a_classifier_of_images_gives_the_same_logits_in_timm(images, tmp_path):
    import timm

    classifier = a_classifier(IMAGES, tubelet_size=1)
    source = saved(classifier, tmp_path / "c.safetensors")
    convert_checkpoint(source, "timm", tmp_path / "c")
    converted = convert_checkpoint(source, "timm", tmp_path / "timm.safetensors")
    from_folder = timm.create_model(f"local-dir:{tmp_path / 'c'}", pretrained=True).eval()
    weights = str(tmp_path / "timm.safetensors")
    from_file = timm.create_model("vit_base_patch16_224", checkpoint_path=weights, **converted.arguments).eval()
    with torch.no_grad():
        for model in (from_folder, from_file):
            assert_equal(model(images), classifier(images[:, :, None]))


def test_timm_is_refused_to_clips_with_the_reason(tmp_path):
    source = saved(a_classifier(), tmp_path / "c.safetensors")
    with pytest.raises(CheckpointError, match="clips have 4 frames and whose tubelets have 2"):
        convert_checkpoint(source, "timm", tmp_path / "c")


# ---- graphs ------------------------------------------------------------------------------------------------------


def test_an_exported_program_gives_the_same_for_any_batch(tmp_path):
    batch = torch.randn(3, 3, 4, 48, 48, generator=torch.Generator().manual_seed(4))
    classifier, student = a_classifier(arch=TINY), a_student(arch=TINY)
    for name, model, expected in (("c", classifier, classifier), ("s", student, student.encode)):
        converted = convert_checkpoint(saved(model, tmp_path / f"{name}.safetensors"), "pt2", tmp_path / f"{name}.pt2")
        extra = {"config.json": ""}
        program = torch.export.load(tmp_path / f"{name}.pt2", extra_files=extra).module()
        assert json.loads(extra["config.json"])["frames"] == 4
        with torch.no_grad():
            for clips in (batch, batch[:1]):
                assert_equal(program(clips), expected(clips))
        assert converted.difference < 1e-5


def test_an_onnx_file_gives_the_same_logits_for_any_batch(tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime", reason="the extra `onnx` is not installed")
    batch = torch.randn(3, 3, 4, 48, 48, generator=torch.Generator().manual_seed(4))
    classifier = a_classifier(arch=TINY)
    convert_checkpoint(saved(classifier, tmp_path / "c.safetensors"), "onnx", tmp_path / "c.onnx")
    session = onnxruntime.InferenceSession(str(tmp_path / "c.onnx"))
    assert json.loads(session.get_modelmeta().custom_metadata_map["config"])["classes"] == 5
    for clips in (batch, batch[:1]):
        (logits,) = session.run(["logits"], {"video": clips.numpy()})
        assert_equal(torch.from_numpy(logits), classifier(clips).detach())
    assert str(Path(graphs.__file__).parent).encode() not in (tmp_path / "c.onnx").read_bytes()


def test_weights_too_large_for_one_onnx_file_lie_beside_it(tmp_path, monkeypatch, video):
    onnxruntime = pytest.importorskip("onnxruntime", reason="the extra `onnx` is not installed")
    monkeypatch.setattr(graphs, "MOST_IN_ONE_FILE", 1000)
    student = a_student(arch=TINY)
    convert_checkpoint(saved(student, tmp_path / "s.safetensors"), "onnx", tmp_path / "s.onnx")
    assert (tmp_path / "s.onnx.data").stat().st_size > 200_000
    (tokens,) = onnxruntime.InferenceSession(str(tmp_path / "s.onnx")).run(["tokens"], {"video": video.numpy()})
    assert_equal(torch.from_numpy(tokens), student.encode(video).detach())


def test_missing_packages_of_onnx_are_one_paragraph_with_the_command(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    source = saved(a_classifier(arch=TINY), tmp_path / "c.safetensors")
    assert main(["convert", str(source), "--to", "onnx", "--out", str(tmp_path / "c.onnx")]) == 2
    assert "needs onnxscript, which is not installed here: pip install 'mvd-offline[onnx]'" in capsys.readouterr().err


@pytest.mark.parametrize(("to", "out"), [("onnx", "x.pt2"), ("pt2", "x.onnx"), ("hf", "x.onnx")])
def test_an_ending_of_another_format_is_refused(to, out, tmp_path):
    with pytest.raises(UsageError, match="this target writes a"):
        convert_checkpoint(saved(a_classifier(arch=TINY), tmp_path / "c.safetensors"), to, tmp_path / out)
