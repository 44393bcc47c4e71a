"""What a student can learn from besides both teachers at every masked token, on real, small videos."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file
from small_runs import metrics, plan_small, run_distill, small_recipe, write_recipe
from torch import Tensor
from torch.nn import functional as F

from mvd_offline.cli.main import main
from mvd_offline.distillation.data import DistillData
from mvd_offline.distillation.task import DistillTask
from mvd_offline.errors import MvdError
from mvd_offline.models import load_student
from mvd_offline.models.inputs import normalize
from mvd_offline.models.saving import save_model
from mvd_offline.shards import open_store
from mvd_offline.targets import open_targets
from mvd_offline.training.loop import batches_of
from mvd_offline.training.optim import build_optimizer, set_learning_rate
from mvd_offline.training.order import BatchRequest

pytestmark = pytest.mark.usefixtures("fresh_accelerator")

NO_TEACHERS: Mapping[str, Any] = {"teachers": {}}
MOMENTUM = {"targets": "online", "momentum": {}}


class Steps:
    """A run's task, stepped by hand: `batch` and `losses` of the micro-batches of each optimiser step."""

    def __init__(self, store: Path, changes: Mapping[str, Any]) -> None:
        self.recipe = small_recipe({"optim.micro_batch_size": 4, **changes})
        accelerator, opened = Accelerator(), open_store(store, sealed=False)
        root = Path(json.loads((store / "local.json").read_text())["videos_root"])
        source = open_targets(self.recipe, opened, accelerator.device)
        self.task = DistillTask(self.recipe, DistillData.of_store(self.recipe, opened, root), source)
        self._batches = batches_of(self.task, self.recipe.optim, self.recipe.training, accelerator)
        self._optimizer = build_optimizer(self.task.groups(), self.recipe.optim, accelerator.device)
        set_learning_rate(self._optimizer, self.recipe.optim.peak_lr)

    def __iter__(self) -> Iterator[tuple[dict[str, Any], dict[str, Tensor]]]:
        for number, (_, batch) in enumerate(self._batches):
            losses = self.task.loss(self.task.model, batch)
            losses["loss"].backward()
            yield batch, losses
            self._optimizer.step()
            self._optimizer.zero_grad()
            for average in self.task.averages.values():
                average.update(number / 3)


def first(steps: Steps) -> tuple[dict[str, Any], dict[str, Tensor]]:
    return next(iter(steps))


# ---- every objective, by the command ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "terms"),
    [
        ({"loss.weights": {"image": 2.0, "video": 0.0}, "pixels": {"weight": 0.5}}, {"image": 2.0, "pixels": 0.5}),
        ({"mask.kind": "none", "student.projector": {"depth": 3, "width": 32}}, {"image": 1.0, "video": 1.0}),
        ({"mask.kind": "random", "mask.decoded": 0.5}, {"image": 1.0, "video": 1.0}),
        (
            {**MOMENTUM, "momentum.weight": 3.0, "pixels": {}, "loss.weights": {"video": 1.0}},
            {"video": 1.0, "pixels": 1.0, "momentum": 3.0},
        ),
    ],
    ids=["pixels", "per-token", "decoded", "momentum"],
)
def test_an_objective_trains_and_the_loss_is_the_weighted_sum_of_its_terms(
    changes: dict[str, Any], terms: dict[str, float], store: Path, tmp_path: Path
) -> None:
    recipe = write_recipe(tmp_path / "r.yaml", {**changes, "optim.stop_after_epochs": 1})
    assert run_distill(recipe, store, tmp_path / "run") == 0

    for line in metrics(tmp_path / "run"):
        assert {key for key in line if key.startswith("loss_")} == {f"loss_{name}" for name in terms}
        assert line["loss"] == pytest.approx(sum(weight * line[f"loss_{name}"] for name, weight in terms.items()))
    assert set(load_student(tmp_path / "run" / "student.safetensors").targets) == set(terms)


def test_a_recipe_without_teachers_plans_a_store_of_views_and_trains_on_it(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = write_recipe(tmp_path / "r.yaml", {**NO_TEACHERS, "pixels": {}, "optim.stop_after_epochs": 1})
    store, run = tmp_path / "store", tmp_path / "run"
    assert main(["plan", str(recipe), "--videos", str(made / "catalog.parquet"), "--store", str(store)]) == 0
    capsys.readouterr()

    assert main(["extract", str(store)]) == 0
    assert "nothing to extract" in capsys.readouterr().out
    assert main(["shards", "verify", str(store)]) == 0
    assert run_distill(recipe, store, run) == 0
    assert all(line["loss"] == line["loss_pixels"] for line in metrics(run))
    assert load_student(run / "student.safetensors").targets == {"pixels": 2 * 16 * 16 * 3}


def test_a_teacher_can_be_added_to_a_store_of_views(made: Path, tmp_path: Path) -> None:
    store = plan_small(made / "catalog.parquet", tmp_path / "store", {**NO_TEACHERS, "pixels": {}})

    assert main(["extract", str(store), "--workers", "1", "--teacher", "video=random:vit_tiny:2"]) == 0

    online = open_store(made / "store")
    spec = open_store(store).header.columns["video"]
    assert (spec.codec, spec.container) == ("float16", "zarr")
    assert spec.source == online.header.columns["video"].source
    views = [3, 11]
    np.testing.assert_allclose(
        open_store(store).read(views)["video"].astype(np.float32), online.read(views)["video"], rtol=1e-3, atol=2e-3
    )


# ---- pixels ----------------------------------------------------------------------------------------------------------


def cubes_of(clips: Tensor) -> Tensor:
    """(B, 4, 32, 32, 3) uint8 to (B, 8 tokens, 512 positions, 3 channels) in [0, 1]: 2 x 16 x 16 cubes by hand."""
    tokens = [
        clips[:, t : t + 2, y : y + 16, x : x + 16].reshape(len(clips), 512, 3)
        for t in (0, 2)
        for y in (0, 16)
        for x in (0, 16)
    ]
    return torch.stack(tokens, dim=1).double() / 255


@pytest.mark.parametrize("normalized", [True, False])
def test_pixels_are_regressed_at_the_decoded_tokens_as_by_videomae(normalized: bool, store: Path) -> None:
    changes = {**NO_TEACHERS, "pixels": {"normalize_targets": normalized}, "mask.decoded": 0.5}
    steps = Steps(store, changes)
    batch, losses = first(steps)

    video = normalize(batch["clips"][32])
    target = cubes_of(batch["clips"][32])
    if normalized:
        target = (target - target.mean(dim=2, keepdim=True)) / (target.std(dim=2, keepdim=True) + 1e-6)
    target = torch.stack([row[tokens] for row, tokens in zip(target.flatten(2), batch["tokens"], strict=True)])
    prediction = steps.task.student(video, batch["mask"], 6, batch["drop_path"], batch["tokens"])["pixels"]
    assert prediction.shape == (4, 3, 1536)
    assert losses["loss_pixels"].item() == pytest.approx(F.mse_loss(prediction.double(), target).item(), rel=1e-5)


# ---- some of the masked tokens ---------------------------------------------------------------------------------------


def test_decoded_tokens_are_a_keyed_choice_of_the_masked_ones_and_all_that_is_read(store: Path) -> None:
    every, half = (Steps(store, {"mask.decoded": share}) for share in (1.0, 0.5))
    for (whole, _), (batch, _) in zip(islice(every, 7), islice(half, 7), strict=True):
        assert torch.equal(batch["mask"], whole["mask"])
        assert batch["tokens"].shape == (4, 3)
        assert {name: tuple(stored.shape) for name, stored in batch["stored"].items()} == {
            "image": (4, 3, 192),
            "video": (4, 3, 192),
        }
        for chosen, masked in zip(batch["tokens"].tolist(), whole["tokens"].tolist(), strict=True):
            assert chosen == sorted(chosen)
            assert set(chosen) < set(masked)

    again = Steps(store, {"mask.decoded": 0.5, "optim.micro_batch_size": 2})
    (one, _), (two, _) = islice(again, 2)
    batch, _ = first(Steps(store, {"mask.decoded": 0.5}))
    assert torch.equal(torch.cat([one["tokens"], two["tokens"]]), batch["tokens"])


def test_the_choice_of_a_row_changes_with_the_epoch(store: Path) -> None:
    reader = Steps(store, {"mask.decoded": 0.5}).task.reader
    requests = [BatchRequest(epoch, batch=0, first=0, last_of_step=True, rows=(0, 1)) for epoch in (0, 0, 2, 4, 6)]

    once, again, *later = (reader(request)["tokens"] for request in requests)

    assert torch.equal(once, again)
    assert not all(torch.equal(once, tokens) for tokens in later)


@pytest.mark.parametrize(("share", "count"), [(1.0, 6), (0.7, 4), (0.01, 1)])
def test_the_number_of_decoded_tokens_is_fixed_and_at_least_one(share: float, count: int, store: Path) -> None:
    batch, losses = first(Steps(store, {"mask.decoded": share}))
    assert batch["tokens"].shape == (4, count)
    assert losses["loss"].isfinite()


# ---- cached and online agree -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [{"mask.kind": "none"}, {"mask.decoded": 0.5}, {"pixels": {}, "loss.weights": {"image": 1.0}}],
    ids=["per-token", "decoded", "pixels"],
)
def test_cached_targets_give_the_losses_of_online_teachers(changes: dict[str, Any], store: Path) -> None:
    cached, online = (Steps(store, {**changes, "targets": targets}) for targets in ("cached", "online"))
    for (_, ours), (_, theirs) in zip(islice(cached, 4), islice(online, 4), strict=True):
        assert ours.keys() == theirs.keys()
        for name, value in ours.items():
            torch.testing.assert_close(value, theirs[name], rtol=1e-6, atol=1e-6)


def test_a_per_token_student_is_taught_at_every_token_from_whole_rows(store: Path) -> None:
    steps = Steps(store, {"mask.kind": "none", "loss.weights": {"video": 1.0}})
    batch, losses = first(steps)

    rows = torch.from_numpy(open_store(store).read(steps.task.order(0)[:4], columns=["video"])["video"])
    assert torch.equal(batch["stored"]["video"], rows)
    video = normalize(batch["clips"][32])
    prediction = steps.task.student(video, drop_noise=batch["drop_path"])["video"]
    assert losses["loss"].item() == pytest.approx(F.smooth_l1_loss(prediction, rows).item(), rel=1e-6)


# ---- momentum --------------------------------------------------------------------------------------------------------


def test_a_momentum_teacher_is_the_average_of_the_encoders_by_the_decay_of_their_epochs(store: Path) -> None:
    decays = [[0, 0.5], [1, 0.9]]  # an epoch has three steps
    steps = Steps(store, {**MOMENTUM, **NO_TEACHERS, "momentum.decay": decays})
    student, teacher = steps.task.student, steps.task.averages["momentum"].module
    names = [name for name, _ in teacher.named_parameters()]
    assert names == [name for name in dict(student.named_parameters()) if name.startswith(("patch_embed", "blocks"))]

    expected = {name: student.get_parameter(name).detach().double().clone() for name in names}
    for number, _ in enumerate(islice(steps, 6)):
        if number:
            # The step before this one is done: its decay is that of the epochs which were done before it.
            decay = 0.5 + 0.4 * min(1.0, (number - 1) / 3)
            for name in names:
                now = student.get_parameter(name).detach().double()
                expected[name] = decay * expected[name] + (1 - decay) * now
                torch.testing.assert_close(teacher.get_parameter(name).double(), expected[name], rtol=1e-5, atol=1e-7)
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    assert not torch.equal(teacher.get_parameter(names[0]), student.get_parameter(names[0]))


@pytest.mark.parametrize("normalized", [True, False])
def test_a_momentum_teacher_sees_the_whole_clip_and_its_features_are_those_of_the_last_block(
    normalized: bool, store: Path
) -> None:
    changes = {**MOMENTUM, **NO_TEACHERS, "momentum": {"normalize_targets": normalized}, "student.drop_path": 0.0}
    steps = Steps(store, changes)
    batch, losses = first(steps)

    # Before any update the teacher is the student.
    video, student = normalize(batch["clips"][32]), steps.task.student
    features = student.encode_tokens(video).detach()
    if normalized:
        features = F.layer_norm(features, (48,), eps=1e-6)
    features = torch.stack([row[tokens] for row, tokens in zip(features, batch["tokens"], strict=True)])
    prediction = student(video, batch["mask"])["momentum"]
    assert prediction.shape == (4, 6, 48)
    assert losses["loss"].item() == pytest.approx(F.smooth_l1_loss(prediction, features).item(), rel=1e-5)


@pytest.mark.parametrize(
    "kind",
    [{**MOMENTUM, **NO_TEACHERS, "momentum.decay": [[0, 0.5], [2, 0.9]]}, {"optim.optimizer": "muon"}],
    ids=["momentum", "muon"],
)
def test_a_run_that_was_stopped_goes_on_as_if_it_had_not(kind: dict[str, Any], store: Path, tmp_path: Path) -> None:
    changes = {**kind, "optim.epochs": 2}
    whole = write_recipe(tmp_path / "whole.yaml", changes)
    part = write_recipe(tmp_path / "part.yaml", {**changes, "optim.stop_after_epochs": 1})

    assert run_distill(whole, store, tmp_path / "a") == 0
    assert run_distill(part, store, tmp_path / "b") == 0
    assert run_distill(whole, store, tmp_path / "b") == 0

    assert metrics(tmp_path / "a") == metrics(tmp_path / "b")
    one, other = (load_file(tmp_path / run / "student.safetensors") for run in ("a", "b"))
    assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())


# ---- starting from other weights -------------------------------------------------------------------------------------


def test_a_student_starts_from_an_encoder_of_single_frames(store: Path, tmp_path: Path) -> None:
    frames = small_recipe({"view.frames": 1, "view.stride": 1, "view.tubelet_size": 1})
    images = Steps(store, {"student.init": None}).task.student  # of the same sizes; only its tubelets are longer
    torch.manual_seed(5)
    start = type(images)(
        images.arch, grid=frames.view.grid, tubelet_size=1, targets={"momentum": 48}, decoder=images.decoder_arch
    )
    save_model(tmp_path / "frames.safetensors", start)

    student = Steps(store, {"student.init": str(tmp_path / "frames.safetensors")}).task.student

    assert torch.equal(student.get_parameter("blocks.1.mlp.fc2.weight"), start.get_parameter("blocks.1.mlp.fc2.weight"))
    weight, image_weight = student.patch_embed.proj.weight, start.patch_embed.proj.weight
    torch.testing.assert_close(weight[:, :, 0], image_weight[:, :, 0] / 2)
    torch.testing.assert_close(weight[:, :, 1], image_weight[:, :, 0] / 2)
    assert torch.equal(student.decoder_vid.head.weight, images.decoder_vid.head.weight)


def test_the_file_that_a_student_started_from_is_needed_until_the_first_checkpoint_and_named_by_its_content(
    store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    init, whole, part, lost = (tmp_path / name for name in ("init.safetensors", "whole", "part", "lost"))
    save_model(init, Steps(store, {}).task.student)
    changes = {"student.init": str(init), "optim.epochs": 2}
    recipe = write_recipe(tmp_path / "r.yaml", changes)
    assert run_distill(recipe, store, whole) == 0
    first_epoch = write_recipe(tmp_path / "first.yaml", {**changes, "optim.stop_after_epochs": 1})
    assert run_distill(first_epoch, store, part) == 0

    # With a checkpoint, it may go.
    shutil.copytree(part, lost)
    init.unlink()
    assert run_distill(recipe, store, part) == 0
    assert metrics(part) == metrics(whole)
    assert (part / "student.safetensors").read_bytes() == (whole / "student.safetensors").read_bytes()

    # Without one, the run begins again, from the same weights only.
    shutil.rmtree(lost / "checkpoints")
    assert run_distill(recipe, store, lost) == 1
    assert f"{init}: no such file or folder" in capsys.readouterr().err
    save_model(init, Steps(store, {"training.seed": 1}).task.student)
    assert run_distill(recipe, store, lost) == 1
    assert "was started on other data: init_sha256 was " in capsys.readouterr().err
    started = [json.loads((run / "identity.json").read_text())["init_sha256"] for run in (whole, part, lost)]
    assert len(set(started)) == 1


# ---- sizes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "tokens", "widths"),
    [
        ({"view.frames": 2, "view.tubelet_size": 1}, 6, {"image": 192, "video": 192}),
        ({"view.frames": 3, "view.tubelet_size": 1, "mask.kind": "none"}, 12, {"image": 192, "video": 192}),
        ({"view.frames": 6, "view.tubelet_size": 1, "pixels": {}}, 18, {"image": 192, "video": 192, "pixels": 768}),
        ({"view.frames": 8, "view.tubelet_size": 4}, 6, {"image": 192, "video": 192}),
        ({"view.image_size": 48, "mask.kind": "random", "mask.ratio": 0.5}, 9, {"image": 192, "video": 192}),
        ({"teachers.image.weights": "random:vit_small:1"}, 6, {"image": 384, "video": 192}),
        ({"student.decoder": {"depth": 2, "width": 32, "heads": 2}}, 6, {"image": 192, "video": 192}),
        ({"student.width": 64, "student.heads": 4, "student.depth": 1}, 6, {"image": 192, "video": 192}),
        (
            {
                "view.image_size": 16,
                "view.patch_size": 8,
                "teachers.image.image_size": 32,
                "teachers.video.image_size": 32,
                "pixels": {},
            },
            6,
            {"image": 192, "video": 192, "pixels": 384},
        ),
        (
            {"view.frames": 1, "view.stride": 1, "view.tubelet_size": 1, **NO_TEACHERS, "momentum": {}},
            3,
            {"momentum": 48},
        ),
    ],
    ids=lambda value: "+".join(value) if isinstance(value, dict) else str(value),
)
def test_sizes_are_the_recipes(
    changes: dict[str, Any], tokens: int, widths: dict[str, int], made: Path, tmp_path: Path
) -> None:
    changes = {"targets": "online", **changes}
    steps = Steps(plan_small(made / "catalog.parquet", tmp_path / "store", changes), changes)

    batch, losses = first(steps)

    student = steps.task.student
    assert student.targets == widths
    assert steps.recipe.view.grid.num_tokens == student.grid.num_tokens
    assert (student.grid.num_tokens if batch["tokens"] is None else batch["tokens"].shape[1]) == tokens
    assert all(value.isfinite() for value in losses.values())
    assert all(parameter.grad is not None for parameter in student.parameters())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"view.image_size": 40}, r"image_size \(40\) is not a multiple of patch_size \(16\)"),
        ({"view.frames": 5}, r"frames \(5\) is not a multiple of tubelet_size \(2\)"),
        ({"mask.ratio": 0.1}, "mask.ratio 0.1 hides none of the 4 tokens that a tube mask chooses from"),
        ({"mask.kind": "random", "mask.ratio": 0.01}, "hides none of the 8 tokens that a random mask chooses from"),
        ({"student.decoder.width": 40, "student.decoder.heads": 2}, "needs a width that is a multiple of 16, not 40"),
        ({"student.decoder.heads": 5}, "width 48 is not a multiple of the number of attention heads, 5"),
        ({"student.width": 40, "student.heads": 2}, "needs a width that is a multiple of 16, not 40"),
        ({"targets": "cached", "momentum": {}}, "changes with every step, so that its targets cannot be cached"),
        ({"mask.kind": "none", "pixels": {}}, "nothing to teach: use a tube or random mask"),
        ({"mask.kind": "none", "mask.decoded": 0.5}, "mask.decoded 0.5 is a share of the masked tokens"),
        ({"momentum.decay": [[5, 0.9]], "targets": "online"}, "ascending epochs from 0"),
        ({"student.init": "nowhere.safetensors"}, "nowhere.safetensors: no such file or folder"),
    ],
    ids=lambda value: "+".join(value) if isinstance(value, dict) else "",
)
def test_what_does_not_fit_is_refused_with_what_to_change(changes: dict[str, Any], message: str, store: Path) -> None:
    with pytest.raises(MvdError, match=message):
        Steps(store, changes)


def test_a_teacher_of_another_grid_is_refused_with_the_size_that_fits(made: Path, tmp_path: Path) -> None:
    changes = {"view.image_size": 32, "view.patch_size": 8}
    fitting = "grid of 2 x 2 x 2, but the view's is 2 x 4 x 4; set teachers.image.image_size: 64"
    with pytest.raises(MvdError, match=re.escape(fitting)):
        plan_small(made / "catalog.parquet", tmp_path / "store", changes)
