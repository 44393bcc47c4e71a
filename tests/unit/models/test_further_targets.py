"""Students that predict pixels and momentum features beside their teachers', some tokens only, or every token."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors import safe_open

from mvd_offline.errors import UsageError
from mvd_offline.geometry import TokenGrid
from mvd_offline.models import load_student
from mvd_offline.models.export import convert_checkpoint
from mvd_offline.models.loading import start_finetuning
from mvd_offline.models.saving import save_model
from mvd_offline.models.student import PerTokenStudent, Student, student_of
from mvd_offline.models.vit import Arch
from mvd_offline.recipe import ClassifierSection, ClipSection, load_distill

ALL = {"image": 24, "video": 40, "pixels": 1536, "momentum": 48}


@pytest.fixture
def further(make_student) -> Student:
    return make_student(targets=ALL)


@pytest.fixture
def per_token() -> PerTokenStudent:
    torch.manual_seed(0)
    return PerTokenStudent(
        Arch(48, 2, 3),
        grid=TokenGrid(2, 3, 3),
        targets={"image": 24, "video": 40},
        projector_depth=3,
        projector_width=56,
        drop_path=0.5,
    ).eval()


# ---- further decoders ------------------------------------------------------------------------------------------------


def test_pixels_and_momentum_have_decoders_of_their_own(further, video, mask):
    assert {name: tuple(p.shape) for name, p in further(video, mask).items()} == {
        name: (2, 12, width) for name, width in ALL.items()
    }


def test_the_official_names_do_not_change_with_further_decoders(student, further):
    more = further.state_dict().keys() - student.state_dict().keys()
    assert student.state_dict().keys() < further.state_dict().keys()
    assert {name.split(".")[0] for name in more} == {
        f"{part}_{short}" for part in ("decoder", "down", "mask_token", "pos_embed") for short in ("pix", "mom")
    }


def test_further_decoders_leave_the_drop_path_draws_of_the_others_alone(make_student, video, mask):
    both, more = make_student(drop_path=0.5).train(), make_student(targets=ALL, drop_path=0.5).train()
    more.load_state_dict(both.state_dict(), strict=False)
    noise = torch.rand(2, more.drop_path_sites, generator=torch.Generator().manual_seed(0))
    found = more(video, mask, 12, noise)
    for name, expected in both(video, mask, 12, noise[:, : both.drop_path_sites]).items():
        assert torch.equal(found[name], expected)


def test_a_student_of_pixels_alone_needs_no_teacher(make_student, video, mask):
    student = make_student(targets={"pixels": 1536})
    assert student(video, mask).keys() == {"pixels"}


def test_our_file_keeps_further_decoders_and_an_official_one_drops_them(further, video, mask, tmp_path):
    save_model(tmp_path / "student.safetensors", further)
    loaded = load_student(tmp_path / "student.safetensors")
    assert list(loaded.targets.items()) == list(ALL.items())
    for name, expected in further(video, mask).items():
        assert torch.equal(loaded(video, mask)[name], expected)

    converted = convert_checkpoint(tmp_path / "student.safetensors", "mvd", tmp_path / "student.pth")
    official = load_student(tmp_path / "student.pth", heads=3, decoder_heads=2)
    assert official.targets == {"image": 24, "video": 40}
    assert torch.equal(official(video, mask)["image"], further(video, mask)["image"])
    assert {name.split(".")[0].rpartition("_")[2] for name in converted.dropped} == {"pix", "mom"}

    kept = convert_checkpoint(tmp_path / "student.safetensors", "safetensors", tmp_path / "again.safetensors")
    assert not kept.dropped
    assert load_student(tmp_path / "again.safetensors").targets == ALL


def test_an_official_file_of_pixels_alone_is_an_encoder_that_can_be_fine_tuned(make_student, video, tmp_path):
    student = make_student(targets={"pixels": 1536})
    save_model(tmp_path / "student.safetensors", student)
    converted = convert_checkpoint(tmp_path / "student.safetensors", "mvd", tmp_path / "student.pth")
    assert any("3-D positions" in note for note in converted.notes)
    section, clip = ClassifierSection(width=48, depth=2, heads=3, classes=5), ClipSection(frames=4, image_size=48)
    for source in ("student.safetensors", "student.pth"):
        classifier, _ = start_finetuning(tmp_path / source, section, clip)
        assert torch.equal(classifier.eval().encode_tokens(video), student.encode_tokens(video))


# ---- some of the masked tokens ---------------------------------------------------------------------------------------


def masked_of(mask: torch.Tensor) -> torch.Tensor:
    return torch.stack([row.nonzero().flatten() for row in mask])


def test_decoding_all_masked_tokens_by_name_changes_no_bit(student, video, mask):
    expected = student(video, mask)
    for name, prediction in student(video, mask, 12, None, masked_of(mask)).items():
        assert torch.equal(prediction, expected[name])


def test_a_choice_of_the_masked_tokens_is_predicted_in_its_order(student, video, mask):
    chosen = masked_of(mask)[:, [1, 4, 5, 10]]
    forward, backward = (student(video, mask, 12, None, tokens)["video"] for tokens in (chosen, chosen.flip(1)))
    assert forward.shape == (2, 4, 40)
    torch.testing.assert_close(forward, backward.flip(1))


def test_decoders_do_not_see_masked_tokens_that_are_not_decoded(student, video, mask):
    alone = student(video, mask, 12, None, masked_of(mask)[:, :1])["video"]
    assert not torch.allclose(alone, student(video, mask)["video"][:, :1], atol=1e-4)


# ---- every token -----------------------------------------------------------------------------------------------------


def test_a_per_token_student_predicts_every_token_by_projectors(per_token, video):
    assert {name: tuple(p.shape) for name, p in per_token(video).items()} == {
        "image": (2, 18, 24),
        "video": (2, 18, 40),
    }
    assert [tuple(layer.weight.shape) for layer in per_token.projector_vid.layers] == [(56, 48), (56, 56), (40, 56)]
    assert not any(name.startswith(("decoder", "mask_token")) for name in per_token.state_dict())


def test_its_predictions_follow_from_the_encoder_token_by_token(per_token, video):
    encoded = per_token.encode(video)
    assert torch.equal(per_token(video)["image"], per_token.projector_img(encoded))
    assert torch.allclose(per_token(video)["image"][:, 3:5], per_token.projector_img(encoded[:, 3:5]), atol=1e-6)


def test_it_takes_a_mask_that_hides_nothing_and_no_other(per_token, video, mask):
    assert torch.equal(per_token(video, torch.zeros_like(mask))["image"], per_token(video)["image"])
    with pytest.raises(UsageError, match=r"sees every token.*24 tokens are masked"):
        per_token(video, mask)


def test_its_drop_path_follows_the_noise_that_is_given(per_token, video):
    per_token.train()
    noise = torch.rand(2, per_token.drop_path_sites, generator=torch.Generator().manual_seed(0))
    together = per_token(video, drop_noise=noise)["video"]
    alone = [per_token(video[i : i + 1], drop_noise=noise[i : i + 1])["video"] for i in range(2)]
    torch.testing.assert_close(together, torch.cat(alone))
    assert not torch.equal(together, per_token.eval()(video)["video"])


def test_it_compiles_into_one_graph(per_token, video):
    compiled = torch.compile(per_token.train(), backend="eager", fullgraph=True)
    noise = torch.rand(2, per_token.drop_path_sites)
    assert torch.equal(compiled(video, drop_noise=noise)["image"], per_token(video, drop_noise=noise)["image"])


def test_a_per_token_student_comes_back_from_its_file(per_token, video, tmp_path):
    save_model(tmp_path / "student.safetensors", per_token)
    with safe_open(tmp_path / "student.safetensors", "pt") as reader:
        config = json.loads(reader.metadata()["config"])
    assert PerTokenStudent.from_config(config).state_dict().keys() == per_token.state_dict().keys()
    loaded = load_student(tmp_path / "student.safetensors")
    assert isinstance(loaded, PerTokenStudent)
    assert torch.equal(loaded(video)["video"], per_token(video)["video"])

    converted = convert_checkpoint(tmp_path / "student.safetensors", "mvd", tmp_path / "student.pth")
    assert {name.split(".")[0] for name in converted.dropped} == {"projector_img", "projector_vid"}
    section, clip = ClassifierSection(width=48, depth=2, heads=3, classes=5), ClipSection(frames=4, image_size=48)
    classifier, _ = start_finetuning(tmp_path / "student.safetensors", section, clip)
    assert torch.equal(classifier.eval().encode_tokens(video), per_token.encode_tokens(video))


# ---- of a recipe -----------------------------------------------------------------------------------------------------


def test_a_recipe_names_everything_that_its_student_predicts():
    recipe = load_distill(
        {
            "kind": "distill",
            "name": "x",
            "targets": "online",
            "view": {"frames": 4, "image_size": 32, "tubelet_size": 1},
            "teachers": {"video": {"weights": "random:vit_tiny"}},
            "student": {"width": 48, "depth": 1, "heads": 3},
            "pixels": {},
            "momentum": {},
        }
    )
    student = student_of(recipe, {"video": 192})
    assert list(student.targets.items()) == [("video", 192), ("pixels", 3 * 256), ("momentum", 48)]


def test_an_unknown_target_is_refused_with_the_known_ones(make_student):
    with pytest.raises(UsageError, match="allowed: image, video, pixels, momentum"):
        make_student(targets={"depth": 8})
