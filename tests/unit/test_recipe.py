"""Recipes: every one that ships, and how a recipe is loaded, overridden, refused and saved."""

import re
from pathlib import Path

import pytest
import yaml

from mvd_offline.errors import RecipeError
from mvd_offline.recipe import (
    DistillRecipe,
    FinetuneRecipe,
    MomentumSection,
    PixelSection,
    PretrainRecipe,
    QuirkSection,
    dump_recipe,
    load_distill,
    load_finetune,
    load_pretrain,
    load_recipe,
    recipe_header,
    shipped_recipes,
)
from mvd_offline.training.order import BatchShape
from mvd_offline.video.masking import masked_tokens

SHIPPED = sorted(shipped_recipes())
FULL = [name for name in SHIPPED if name.startswith(("distill/", "pretrain/", "finetune/"))]
TWINS = [name for name in SHIPPED if name.startswith("smoke/")]
DEMO = [n for n in SHIPPED if n.startswith(("demo/", "science/"))]  # of `demo` and `bench science`: tiny themselves

# name: (peak, floor, clips a step, micro-batch, trained epochs, schedule, drop path,
#        (decoder depth, width, heads), teachers' precision aside: image teacher's input side)
DISTILL = {
    "vit_s_from_vit_b_k400": (6e-4, 4e-4, 1024, 16, 400, 401, 0.1, (2, None, None), None),
    "vit_s_from_vit_l_k400": (6e-4, 4e-4, 1024, 16, 400, 401, 0.1, (2, None, None), None),
    "vit_b_from_vit_b_k400": (6e-4, 4e-4, 1024, 16, 400, 401, 0.1, (2, None, None), None),
    "vit_b_from_vit_l_k400": (6e-4, 4e-4, 1024, 8, 400, 401, 0.1, (2, None, None), None),
    "vit_l_from_vit_l_k400": (3e-4, 2e-4, 512, 8, 400, 401, 0.1, (4, 512, 8), None),
    "vit_l_from_vit_l_k400_800e": (3e-4, 2e-5, 512, 8, 800, 801, 0.1, (4, 512, 8), None),
    "vit_h_from_vit_h_k400_800e": (3e-4, 2e-5, 512, 8, 800, 801, 0.2, (8, 640, 8), 196),
}

# name: (peak, floor, batch, trained epochs, schedule, decoder (depth, width, heads), mask, patch)
PRETRAIN = {
    "mae_vit_s": (2.4e-3, 0.0, 4096, 1600, 1600, (8, 512, 16), ("random", 0.75), 16),
    "mae_vit_b": (2.4e-3, 0.0, 4096, 1600, 1600, (8, 512, 16), ("random", 0.75), 16),
    "mae_vit_l": (2.4e-3, 0.0, 4096, 1600, 1600, (8, 512, 16), ("random", 0.75), 16),
    "mae_vit_h": (2.4e-3, 0.0, 4096, 1600, 1600, (8, 512, 16), ("random", 0.75), 14),
    "videomae_vit_s_k400": (6e-4, 4e-5, 1024, 1600, 1601, (4, 192, 3), ("tube", 0.9), 16),
    "videomae_vit_b_k400": (1.2e-3, 8e-5, 2048, 1600, 1601, (4, 384, 6), ("tube", 0.9), 16),
    "videomae_vit_l_k400": (3e-4, 2e-5, 512, 1600, 1601, (12, 512, 8), ("tube", 0.9), 16),
    "videomae_vit_h_k400": (6e-4, 4e-5, 1024, 1600, 1601, (12, 640, 8), ("tube", 0.9), 16),
    "videomae_vit_s_ssv2": (6e-4, 4e-5, 1024, 2400, 2401, (4, 192, 3), ("tube", 0.9), 16),
    "videomae_vit_b_ssv2": (1.2e-3, 8e-5, 2048, 2400, 2401, (4, 384, 6), ("tube", 0.9), 16),
}

# name: (peak, floor, videos a step, epochs, layer decay, drop path, head dropout, segments, classes)
# The released scripts' (recipes of K400 and SSv2), the paper's (UCF101, HMDB51) and MAE's (ImageNet).
FINETUNE = {
    "vit_s_k400": (7.5e-4, 1.5e-6, 384, 150, 0.75, 0.1, 0.0, 5, 400),
    "vit_b_k400": (7.5e-4, 1.5e-6, 384, 75, 0.75, 0.1, 0.0, 5, 400),
    "vit_l_k400": (2e-3, 2e-6, 512, 50, 0.75, 0.3, 0.5, 5, 400),
    "vit_h_k400": (1e-3, 1e-6, 256, 50, 0.75, 0.3, 0.5, 5, 400),
    "vit_s_ssv2": (1.5e-3, 1.5e-6, 384, 40, 0.7, 0.1, 0.0, 2, 174),
    "vit_b_ssv2": (7.5e-4, 1.5e-6, 384, 30, 0.75, 0.1, 0.0, 2, 174),
    "vit_l_ssv2": (5e-4, 1e-6, 256, 30, 0.75, 0.3, 0.5, 2, 174),
    "vit_h_ssv2": (2.5e-4, 5e-6, 128, 30, 0.75, 0.3, 0.5, 2, 174),
    "vit_s_ucf101": (2.5e-4, 5e-6, 128, 100, 0.7, 0.2, 0.5, 5, 101),
    "vit_b_ucf101": (2.5e-4, 5e-6, 128, 100, 0.7, 0.2, 0.5, 5, 101),
    "vit_l_ucf101": (2.5e-4, 5e-6, 128, 100, 0.7, 0.3, 0.5, 5, 101),
    "vit_h_ucf101": (2.5e-4, 5e-6, 128, 100, 0.7, 0.3, 0.5, 5, 101),
    "vit_s_hmdb51": (5e-4, 5e-6, 128, 50, 0.7, 0.2, 0.5, 5, 51),
    "vit_b_hmdb51": (5e-4, 5e-6, 128, 50, 0.7, 0.2, 0.5, 5, 51),
    "vit_l_hmdb51": (5e-4, 5e-6, 128, 50, 0.7, 0.3, 0.5, 5, 51),
    "vit_h_hmdb51": (5e-4, 5e-6, 128, 50, 0.7, 0.3, 0.5, 5, 51),
    "vit_b_imagenet": (2e-3, 1e-6, 1024, 100, 0.65, 0.1, 0.0, 1, 1000),
}

# name: (GPUs, videos of each at a time, accumulated batches, base learning rate, floor before scaling)
FINETUNE_LAUNCHES = {
    "vit_s_k400": (16, 12, 2, 5e-4, 1e-6),
    "vit_b_k400": (32, 6, 2, 5e-4, 1e-6),
    "vit_l_k400": (32, 8, 2, 1e-3, 1e-6),
    "vit_h_k400": (32, 8, 1, 1e-3, 1e-6),
    "vit_s_ssv2": (32, 12, 1, 1e-3, 1e-6),
    "vit_b_ssv2": (16, 24, 1, 5e-4, 1e-6),
    "vit_l_ssv2": (16, 16, 1, 5e-4, 1e-6),
    "vit_h_ssv2": (16, 8, 1, 5e-4, 1e-5),
    "vit_b_ucf101": (8, 16, 1, 5e-4, 1e-5),
    "vit_b_hmdb51": (8, 16, 1, 1e-3, 1e-5),
}

# The paper's comparisons: student, teachers that it learns from, further objectives, trained epochs, clip stride.
COMPARISONS = {
    "table1_vit_s_image_k400": ("vit_small", ("image",), (), 400, 4),
    "table1_vit_s_video_k400": ("vit_small", ("video",), (), 400, 4),
    "table1_vit_b_image_k400": ("vit_base", ("image",), (), 400, 4),
    "table1_vit_b_video_k400": ("vit_base", ("video",), (), 400, 4),
    "table7_vit_b_video_800e_k400": ("vit_base", ("video",), (), 400, 4),
    "table8_vit_s_image_ssv2": ("vit_small", ("image",), (), 300, 2),
    "table8_vit_s_image_pixels_ssv2": ("vit_small", ("image",), ("pixels",), 300, 2),
    "table8_vit_s_both_ssv2": ("vit_small", ("image", "video"), (), 300, 2),
    "table8_vit_s_both_pixels_ssv2": ("vit_small", ("image", "video"), ("pixels",), 300, 2),
    "table8_vit_s_pixels_ssv2": ("vit_small", (), ("pixels",), 300, 2),
    "table9_vit_b_momentum_k400": ("vit_base", (), ("momentum",), 800, 4),
    "table9_vit_b_momentum_in1k": ("vit_base", (), ("momentum",), 800, 1),
    "table9_vit_b_momentum_from_images_k400": ("vit_base", (), ("momentum",), 800, 4),
    "table10_vit_b_per_token_k400": ("vit_base", ("video",), (), 400, 4),
    "table11_vit_b_image": ("vit_base", ("image",), (), 400, 1),
}

# What a header must quote: the published numbers of each row.
PUBLISHED = {
    "distill/vit_s_from_vit_b_k400": ("80.6", "94.7", "70.7", "92.6"),
    "distill/vit_s_from_vit_l_k400": ("81.0", "94.8", "70.9", "92.8"),
    "distill/vit_b_from_vit_b_k400": ("82.7", "95.4", "72.5", "93.6", "97.0", "76.4"),
    "distill/vit_b_from_vit_l_k400": ("83.4", "95.8", "73.7", "94.0", "97.5", "79.7"),
    "distill/vit_l_from_vit_l_k400": ("86.0", "96.9", "76.1", "95.4"),
    "distill/vit_l_from_vit_l_k400_800e": ("86.4", "97.0", "76.7", "95.5"),
    "distill/vit_h_from_vit_h_k400_800e": ("87.2", "87.3", "97.4", "77.3", "95.7"),
    "distill/table1_vit_s_image_k400": ("80.4", "69.4"),
    "distill/table1_vit_s_video_k400": ("80.1", "70.0"),
    "distill/table1_vit_b_image_k400": ("82.3", "71.4"),
    "distill/table1_vit_b_video_k400": ("82.1", "71.8"),
    "distill/table7_vit_b_video_800e_k400": ("81.9", "107", "57"),
    "distill/table8_vit_s_image_ssv2": ("68.7",),
    "distill/table8_vit_s_image_pixels_ssv2": ("67.9",),
    "distill/table8_vit_s_both_ssv2": ("70.1",),
    "distill/table8_vit_s_both_pixels_ssv2": ("69.0",),
    "distill/table9_vit_b_momentum_k400": ("80.5", "70.4"),
    "distill/table9_vit_b_momentum_from_images_k400": ("81.8", "70.8"),
    "distill/table10_vit_b_per_token_k400": ("80.9", "70.5"),
    "distill/table11_vit_b_image": ("84.0", "83.6"),
    "finetune/vit_s_k400": ("80.6", "81.0"),
    "finetune/vit_b_k400": ("82.7", "83.4"),
    "finetune/vit_l_k400": ("86.0", "86.4"),
    "finetune/vit_h_k400": ("87.2", "87.3"),
    "finetune/vit_s_ssv2": ("70.7", "70.9"),
    "finetune/vit_b_ssv2": ("72.5", "73.7"),
    "finetune/vit_l_ssv2": ("76.1", "76.7"),
    "finetune/vit_h_ssv2": ("77.3",),
    "finetune/vit_b_ucf101": ("97.0", "97.5"),
    "finetune/vit_b_hmdb51": ("76.4", "79.7"),
    "finetune/vit_b_imagenet": ("84.0", "83.6"),
    "pretrain/mae_vit_b": ("83.66",),
    "pretrain/mae_vit_l": ("85.95",),
    "pretrain/mae_vit_h": ("86.93",),
    "pretrain/videomae_vit_b_ssv2": ("70.6", "69.6"),
    "pretrain/videomae_vit_s_k400": ("79.0", "66.4"),
    "pretrain/videomae_vit_b_k400": ("81.5", "69.7"),
    "pretrain/videomae_vit_l_k400": ("85.2", "74.0"),
    "pretrain/videomae_vit_h_k400": ("86.6",),
}


def header_of(name: str) -> str:
    return "\n".join(recipe_header(shipped_recipes()[name].read_text(encoding="utf-8")))


# ---- what ships --------------------------------------------------------------------------------------------------


def test_the_tables_of_this_file_name_every_recipe_that_ships() -> None:
    tables = {"distill": (*DISTILL, *COMPARISONS), "pretrain": PRETRAIN, "finetune": FINETUNE}
    expected = [f"{folder}/{name}" for folder, names in tables.items() for name in names]

    assert sorted(expected) == FULL


def test_every_recipe_has_a_tiny_twin_of_the_same_kind_and_path() -> None:
    assert sorted(f"smoke/{name.replace('/', '_')}" for name in FULL) == TWINS
    for name in FULL:
        full, twin = load_recipe(name), load_recipe(f"smoke/{name.replace('/', '_')}")
        assert type(full) is type(twin)
        if isinstance(full, DistillRecipe) and isinstance(twin, DistillRecipe):
            assert full.loss == twin.loss
            assert full.mask == twin.mask
            assert full.active_teachers == twin.active_teachers
            assert (full.targets, full.pixels, full.momentum) == (twin.targets, twin.pixels, twin.momentum)
            assert (full.student.init, full.student.projector) == (twin.student.init, twin.student.projector)
            assert full.store.codec == twin.store.codec
            assert full.student.checkpoint_activations == twin.student.checkpoint_activations
            assert (full.student.decoder.width is None) == (twin.student.decoder.width is None)
        elif isinstance(full, PretrainRecipe) and isinstance(twin, PretrainRecipe):
            assert (full.method, full.mask) == (twin.method, twin.mask)
        elif isinstance(full, FinetuneRecipe) and isinstance(twin, FinetuneRecipe):
            assert full.clip.sampling == twin.clip.sampling
            assert (full.augment, full.mixing) == (twin.augment, twin.mixing)
            assert full.optim.layer_decay == twin.optim.layer_decay


def test_a_twin_accumulates_gradients_exactly_where_the_recipe_does() -> None:
    # The recipe's processes are 32 (distill); a twin runs in one.
    for name in DISTILL:
        full, twin = load_distill(f"distill/{name}"), load_distill(f"smoke/distill_{name}")
        assert full.optim.batch_size // (full.optim.micro_batch_size * 32) == (
            twin.optim.batch_size // twin.optim.micro_batch_size
        )


@pytest.mark.parametrize("name", TWINS)
def test_a_twin_is_tiny(name: str) -> None:
    recipe = load_recipe(name)
    clip = recipe.clip if isinstance(recipe, FinetuneRecipe) else recipe.view
    model = recipe.student if isinstance(recipe, DistillRecipe) else recipe.model

    assert clip.image_size <= 64
    assert clip.frames <= 8
    assert model.width is not None
    assert model.width <= 64
    assert model.width % 16 == 0, "sine-cosine positions along three axes need a width that 16 divides"
    assert recipe.optim.batch_size <= 8
    assert recipe.training.precision == "no"


def test_every_recipe_is_in_one_of_the_folders_of_configs() -> None:
    assert sorted(FULL + TWINS + DEMO) == SHIPPED


@pytest.mark.parametrize("name", SHIPPED)
def test_a_recipe_opens_with_its_row_and_hardware(name: str) -> None:
    lines = recipe_header(shipped_recipes()[name].read_text(encoding="utf-8"))

    assert len(lines[0]) > 20
    assert any(line.startswith("Hardware") for line in lines)


@pytest.mark.parametrize("name", FULL + TWINS)
def test_a_header_gives_the_commands_that_run_this_very_recipe(name: str) -> None:
    lines = recipe_header(shipped_recipes()[name].read_text(encoding="utf-8"))
    commands = [line for line in lines[lines.index("Commands:") :] if "mvd" in line]

    assert any(name in line for line in commands)


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_header_quotes_the_published_numbers(name: str) -> None:
    header = header_of(name)

    for number in PUBLISHED[name]:
        assert number in header


@pytest.mark.parametrize("name", [n for n in FULL if n not in PUBLISHED])
def test_a_recipe_without_a_published_row_says_so(name: str) -> None:
    header = header_of(name)

    assert "no published" in header
    if name.startswith("finetune/"):
        assert "Carried over from finetune/vit_b_" in header


@pytest.mark.parametrize("name", FINETUNE)
def test_a_fine_tuning_header_says_what_is_augmented_and_mixed(name: str) -> None:
    header = header_of(f"finetune/{name}")
    assert "Not covered" not in header
    assert ("quirks.cutmix_in_time=true" in header) == (name != "vit_b_imagenet")

    for word in (
        "random resized crop",
        "label smoothing",
        "RandAugment",
        "random erasing",
        "mixup",
        "CutMix",
        "repeated",
    ):
        assert word in header


@pytest.mark.parametrize("name", SHIPPED)
def test_a_recipe_survives_saving_and_loading(name: str) -> None:
    recipe = load_recipe(name)

    assert load_recipe(yaml.safe_load(dump_recipe(recipe))) == recipe
    assert recipe.name == (name.partition("/")[2] if name in FULL else name.replace("/", "_"))


# ---- the numbers of the papers and their scripts -----------------------------------------------------------------


@pytest.mark.parametrize("name", DISTILL)
def test_distillation_settings_are_those_of_the_released_scripts(name: str) -> None:
    peak, floor, batch, micro, trained, schedule, drop_path, decoder, image_side = DISTILL[name]
    recipe = load_distill(f"distill/{name}")
    optim, student = recipe.optim, recipe.student

    assert optim.peak_lr == pytest.approx(peak, rel=1e-12)
    assert optim.floor_lr == pytest.approx(floor, rel=1e-12)
    assert (optim.batch_size, optim.micro_batch_size) == (batch, micro)
    assert (optim.epochs, optim.stop_after_epochs, optim.warmup_epochs) == (schedule, trained, 40)
    assert (optim.weight_decay, optim.betas, optim.eps, optim.clip_grad_norm) == (0.05, (0.9, 0.95), 1e-8, None)
    assert student.drop_path == drop_path
    assert (student.decoder.depth, student.decoder.width, student.decoder.heads) == decoder
    assert student.checkpoint_activations == name.startswith("vit_h")
    assert recipe.teachers["image"].image_size == image_side
    assert recipe.teachers["video"].image_size is None
    assert (recipe.view.frames, recipe.view.stride, recipe.view.grid.num_tokens) == (16, 4, 1568)
    assert (recipe.mask.kind, recipe.mask.ratio) == ("tube", 0.9)
    assert (recipe.loss.kind, recipe.loss.beta, recipe.loss.normalize_targets) == ("smooth_l1", 1.0, False)
    assert recipe.loss.weights == {"image": 1.0, "video": 1.0}
    # 32 GPUs, each with as many clips at a time as the script gives it.
    assert recipe.quirks == QuirkSection(
        decay_mask_tokens=True, scale_min_lr=True, leftover_micro_batch=32 * optim.micro_batch_size
    )
    assert recipe.quirks.floor_lr(optim) == optim.floor_lr


@pytest.mark.parametrize("name", COMPARISONS)
def test_a_comparison_differs_from_the_released_recipes_in_what_it_compares(name: str) -> None:
    arch, teachers, further, epochs, stride = COMPARISONS[name]
    recipe = load_distill(f"distill/{name}")
    like = load_distill(f"distill/{'vit_s' if arch == 'vit_small' else 'vit_b'}_from_vit_b_k400")
    optim = recipe.optim

    assert recipe.student.arch == arch
    assert recipe.active_teachers == teachers
    assert all(recipe.loss.weights[teacher] == 1.0 for teacher in teachers)
    assert (recipe.pixels is not None, recipe.momentum is not None) == ("pixels" in further, "momentum" in further)
    assert (optim.epochs, optim.stop_after_epochs, recipe.view.stride) == (epochs + 1, epochs, stride)
    assert recipe.targets == ("online" if "momentum" in further else "cached")
    assert (recipe.mask == like.mask) == (name not in ("table9_vit_b_momentum_in1k", "table10_vit_b_per_token_k400"))
    assert recipe.student.model_copy(update={"init": None}) == like.student
    assert optim.peak_lr == like.optim.peak_lr
    assert optim.floor_lr == pytest.approx(4e-5 if epochs == 800 else 4e-4)
    if "pixels" in further:
        assert recipe.pixels == PixelSection(weight=1.0, normalize_targets=True)
    if "momentum" in further:
        points = ((0, 0.999), (100, 0.9999), (400, 0.99999))
        assert recipe.momentum == MomentumSection(weight=1.0, decay=points, normalize_targets=True)


@pytest.mark.parametrize("name", [name for name in COMPARISONS if name.startswith(("table1_", "table10_"))])
def test_comparisons_on_kinetics_can_share_the_released_recipes_store(name: str) -> None:
    recipe, released = load_distill(f"distill/{name}"), load_distill("distill/vit_b_from_vit_b_k400")

    assert (recipe.view, recipe.store) == (released.view, released.store)
    assert recipe.teachers.items() <= released.teachers.items()


@pytest.mark.parametrize("teacher", ["b", "l"])
def test_students_of_the_same_teachers_share_a_store(teacher: str) -> None:
    recipes = [load_distill(f"distill/{name}") for name in DISTILL if f"from_vit_{teacher}" in name]

    assert len(recipes) > 1
    for recipe in recipes[1:]:
        assert recipe.view == recipes[0].view
        assert recipe.teachers == recipes[0].teachers
        assert recipe.store == recipes[0].store


@pytest.mark.parametrize("name", PRETRAIN)
def test_pretraining_settings_are_those_of_mae_and_videomae(name: str) -> None:
    peak, floor, batch, trained, schedule, decoder, mask, patch = PRETRAIN[name]
    recipe = load_pretrain(f"pretrain/{name}")
    optim = recipe.optim

    assert recipe.method == name.partition("_")[0]
    assert optim.peak_lr == pytest.approx(peak, rel=1e-12)
    assert optim.floor_lr == pytest.approx(floor, rel=1e-12)
    assert (optim.batch_size, optim.epochs, optim.stop_after_epochs or optim.epochs) == (batch, schedule, trained)
    assert (optim.warmup_epochs, optim.weight_decay, optim.betas) == (40, 0.05, (0.9, 0.95))
    assert (recipe.model.decoder.depth, recipe.model.decoder.width, recipe.model.decoder.heads) == decoder
    assert (recipe.mask.kind, recipe.mask.ratio) == mask
    assert recipe.view.patch_size == patch
    assert recipe.model.drop_path == 0.0
    assert recipe.normalize_targets
    assert (optim.eps, optim.clip_grad_norm, optim.lr_reference_batch) == (1e-8, None, 256)


@pytest.mark.parametrize("name", PRETRAIN)
def test_pretraining_sees_what_mae_and_videomae_see(name: str) -> None:
    recipe = load_pretrain(f"pretrain/{name}")
    view, patch = recipe.view, PRETRAIN[name][7]
    tokens = view.grid.num_tokens
    seen = tokens - masked_tokens(recipe.mask.kind, view.grid, recipe.mask.ratio)

    assert view.image_size == 224
    assert view.num_sample == 1
    if recipe.method == "mae":
        assert (view.frames, view.tubelet_size) == (1, 1)
        assert (view.crop, view.crop_area, view.flip) == ("random_resized", (0.2, 1.0), 0.5)
        assert (seen, tokens) == ((49, 196) if patch == 16 else (64, 256))
    else:
        assert (view.frames, view.tubelet_size, view.stride) == (16, 2, 2 if name.endswith("ssv2") else 4)
        assert (view.crop, view.crop_scales, view.flip) == ("multiscale", (1.0, 0.875, 0.75, 0.66), 0.0)
        assert (seen, tokens) == (160, 1568)
    assert (
        recipe.model.arch == {"s": "vit_small", "b": "vit_base", "l": "vit_large", "h": "vit_huge"}[name.split("_")[2]]
    )


@pytest.mark.parametrize("name", FINETUNE)
def test_fine_tuning_settings_are_those_of_the_released_scripts(name: str) -> None:
    peak, floor, batch, epochs, decay, drop_path, dropout, segments, classes = FINETUNE[name]
    recipe = load_finetune(f"finetune/{name}")
    optim, something = recipe.optim, name.endswith("ssv2")

    assert optim.peak_lr == pytest.approx(peak, rel=1e-12)
    assert optim.floor_lr == pytest.approx(floor, rel=1e-12)
    assert (optim.batch_size, optim.epochs, optim.warmup_epochs, optim.layer_decay) == (batch, epochs, 5, decay)
    assert (optim.weight_decay, optim.betas, optim.clip_grad_norm) == (0.05, (0.9, 0.999), None)
    assert (recipe.model.drop_path, recipe.model.head_dropout, recipe.model.classes) == (drop_path, dropout, classes)
    assert (recipe.evaluation.segments, recipe.evaluation.crops) == (segments, 1 if name == "vit_b_imagenet" else 3)
    assert recipe.clip.sampling == ("uniform" if something else "dense")
    assert recipe.label_smoothing == 0.1
    assert (recipe.model.head_init_scale, recipe.ema, recipe.optim.eps) == (0.001, None, 1e-8)
    assert (optim.stop_after_epochs, recipe.training.precision) == (None, "fp16")


@pytest.mark.parametrize("name", FINETUNE)
def test_fine_tuning_augments_and_mixes_as_the_released_scripts(name: str) -> None:
    recipe, images = load_finetune(f"finetune/{name}"), name == "vit_b_imagenet"
    augment, mixing = recipe.augment, recipe.mixing
    assert augment.rand_augment
    assert augment.erasing
    assert mixing

    assert augment.repeats == (1 if images else 2)
    assert augment.flip == (0 if name.endswith("ssv2") else 0.5)
    assert (augment.area, augment.aspect) == ((0.08, 1.0), (0.75, 4 / 3))
    ours = augment.rand_augment
    assert (ours.magnitude, ours.operations) == ((9, 2) if images else (7, 4))
    assert (ours.magnitude_std, ours.probability) == (0.5, 0.5)
    assert (augment.erasing.probability, augment.erasing.area, augment.erasing.aspect) == (
        0.25, (0.02, 1 / 3), (0.3, 1 / 0.3),
    )  # fmt: skip
    assert (mixing.mixup_alpha, mixing.cutmix_alpha) == (0.8, 1.0)
    assert (mixing.probability, mixing.switch_probability) == (1.0, 0.5)
    assert not recipe.quirks.cutmix_in_time


@pytest.mark.parametrize("name", FINETUNE_LAUNCHES)
def test_the_table_of_released_fine_tuning_scripts_follows_from_the_recipes(name: str) -> None:
    gpus, videos, accumulated, base, floor = FINETUNE_LAUNCHES[name]
    recipe = load_finetune(f"finetune/{name}")
    optim = recipe.optim
    shape = BatchShape(optim.batch_size, gpus, optim.micro_batch_size)

    assert (shape.micro, shape.accumulation) == (videos, accumulated)
    # A repeated view is no video: it counts neither in the batch nor in the learning rate.
    total = gpus * videos * accumulated
    assert (optim.batch_size, optim.base_lr, optim.min_lr) == (total, base, floor)
    assert (optim.peak_lr, optim.floor_lr) == pytest.approx((base * total / 256, floor * total / 256), rel=1e-12)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("mixing={mixup_alpha: 0, cutmix_alpha: 0}", "are both 0, so that nothing is mixed: leave mixing out"),
        ("mixing.probability=1.5", "mixing.probability: input should be less than or equal to 1"),
        ("mixing.alpha=0.8", "mixing.alpha is no known key; did you mean mixup_alpha?"),
        ("augment.area=[0.5, 0.2]", "area must be a smallest and a largest share in (0, 1], not (0.5, 0.2)"),
        ("augment.erasing.aspect=[0, 1]", "aspect must be a smallest and a largest ratio above 0, not (0.0, 1.0)"),
        ("augment.rand_augment.magnitude=11", "less than or equal to 10"),
        ("augment.repeats=0", "augment.repeats: input should be greater than or equal to 1"),
        ("quirks.cutmix_in_tmie=true", "quirks.cutmix_in_tmie is no known key; did you mean cutmix_in_time?"),
    ],
)
def test_augmentation_that_cannot_be_is_refused(override: str, message: str) -> None:
    with pytest.raises(RecipeError, match=re.escape(message)):
        load_finetune("smoke/finetune_vit_s_k400", [override])


# ---- loading, overriding, refusing -------------------------------------------------------------------------------

MINIMAL = {"kind": "distill", "name": "x", "teachers": {"image": {"weights": "random:vit_tiny"}}}


def test_overrides_reach_any_depth_and_read_yaml_values() -> None:
    recipe = load_distill(
        MINIMAL,
        ["optim.base_lr=1e-3", "student.decoder.depth=3", "view.crop=center", "loss.weights={image: 0.5}"],
    )

    assert recipe.optim.base_lr == 1e-3
    assert recipe.student.decoder.depth == 3
    assert recipe.view.crop == "center"
    assert recipe.loss.weights == {"image": 0.5}


def test_overrides_leave_the_given_mapping_alone() -> None:
    given = {**MINIMAL, "optim": {"epochs": 5}}

    load_recipe(given, ["optim.epochs=7"])

    assert given["optim"] == {"epochs": 5}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optim.epoch=3", r"optim\.epoch is no known key; did you mean epochs\?"),
        ("teachers.image.weight=3", r"teachers\.image\.weight is no known key; did you mean weights\?"),
        ("views.frames=8", r"views is no known key; did you mean view\?"),
        ("optim.epochs=-1", r"optim\.epochs: input should be greater than 0 \(found -1"),
        ("view.crop=middle", r"view\.crop: .*'multiscale', 'center' or 'random_resized'.*found 'middle'"),
        ("view.frames=15", r"frames \(15\) is not a multiple of tubelet_size \(2\)"),
        ("loss.weights={image: 0}", "no teacher has a loss weight above zero"),
        ("kind=distil", "kind is 'distil'; allowed: distill, pretrain, finetune"),
        ("optim", "write it as dotted.path=value"),
        ("name.first=3", "name is a value, not a section"),
        ("optim.betas=[0.9", "is not a YAML value"),
    ],
)
def test_a_bad_override_is_refused_with_its_path_and_a_hint(override: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        load_recipe(MINIMAL, [override])


def test_a_missing_key_is_named() -> None:
    with pytest.raises(RecipeError, match="name is missing"):
        load_recipe({"kind": "distill", "teachers": {}})


def test_a_recipe_without_an_objective_is_refused() -> None:
    with pytest.raises(RecipeError, match="there is nothing to learn from"):
        load_recipe({"kind": "distill", "name": "x"})


def test_an_unknown_name_suggests_the_nearest_recipes() -> None:
    with pytest.raises(RecipeError, match="Did you mean distill/vit_s_from_vit_b_k400"):
        load_recipe("distill/vit_s_from_vit_b_k40")


def test_a_file_that_is_no_mapping_is_refused(tmp_path: Path) -> None:
    (tmp_path / "list.yaml").write_text("- 1\n")
    (tmp_path / "broken.yaml").write_text("a: [1\n")

    with pytest.raises(RecipeError, match="a YAML mapping, not list"):
        load_recipe(tmp_path / "list.yaml")
    with pytest.raises(RecipeError, match="not readable as YAML"):
        load_recipe(tmp_path / "broken.yaml")


def test_a_yaml_file_cannot_build_python_objects(tmp_path: Path) -> None:
    (tmp_path / "evil.yaml").write_text("!!python/object/apply:os.getcwd []\n")

    with pytest.raises(RecipeError, match="not readable as YAML"):
        load_recipe(tmp_path / "evil.yaml")


def test_a_recipe_of_another_kind_is_refused() -> None:
    with pytest.raises(RecipeError, match="this is a finetune recipe; a distill recipe is needed here"):
        load_distill("finetune/vit_s_k400")
    with pytest.raises(RecipeError, match="a pretrain recipe is needed here"):
        load_pretrain("finetune/vit_s_k400")
    with pytest.raises(RecipeError, match="a finetune recipe is needed here"):
        load_finetune("pretrain/mae_vit_b")


def test_a_teacher_of_weight_zero_is_not_active() -> None:
    both = {**MINIMAL, "teachers": {"image": {"weights": "a"}, "video": {"weights": "b"}}}

    assert load_distill(both).active_teachers == ("image", "video")
    assert load_distill(both, ["loss.weights.image=0", "loss.weights.video=1"]).active_teachers == ("video",)


def test_a_recipe_is_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        load_distill(MINIMAL).name = "y"  # type: ignore[misc]


@pytest.mark.parametrize("precision", ["no", "fp16", "bf16"])
def test_every_precision_can_be_typed_as_it_is(precision: str) -> None:
    assert load_distill(MINIMAL, [f"training.precision={precision}"]).training.precision == precision


def test_only_numbers_become_numbers() -> None:
    assert load_distill(MINIMAL, ["optim.base_lr=1e-4"]).optim.base_lr == 1e-4
    assert load_distill(MINIMAL, ["name=inf"]).name == "inf"
