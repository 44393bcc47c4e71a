"""Typed, frozen recipes: one YAML file is one run.

A recipe is parsed once; nothing downstream asks a dictionary for a default. Unknown keys are refused by dotted path
with the nearest known name, `a.b=c` strings override, and the resolved recipe is saved in the run.
"""

from __future__ import annotations

import copy
import difflib
import itertools
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeAlias, TypeVar

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from mvd_offline.errors import RecipeError
from mvd_offline.geometry import TokenGrid

TeacherName: TypeAlias = Literal["image", "video"]
TEACHER_NAMES: tuple[TeacherName, ...] = ("image", "video")
# YAML 1.1 reads a bare `no` as false.
Precision: TypeAlias = Annotated[Literal["no", "fp16", "bf16"], BeforeValidator(lambda v: "no" if v is False else v)]
Arch: TypeAlias = Literal["vit_tiny", "vit_small", "vit_base", "vit_large", "vit_huge"]

Fraction: TypeAlias = Annotated[float, Field(ge=0.0, lt=1.0)]
Positive: TypeAlias = Annotated[int, Field(ge=1)]


class Section(BaseModel):
    """A frozen part of a recipe; unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


# ---- what a view is, and who looks at it: the part of a recipe that a store is bound to --------------------------


class ClipGeometry(Section):
    """The size of a clip and of its tokens."""

    frames: Positive = 16
    """Frames of a clip, T."""
    stride: Positive = 4
    """Distance of neighbouring frames, in frames of the video. Uniform sampling, over the whole video, has none."""
    image_size: Positive = 224
    """Side of the rendered, square frames in pixels, S."""
    tubelet_size: Positive = 2
    """Frames of one token."""
    patch_size: Positive = 16
    """Pixels of a token's side."""

    @property
    def grid(self) -> TokenGrid:
        return TokenGrid.of_clip(
            frames=self.frames,
            image_size=self.image_size,
            tubelet_size=self.tubelet_size,
            patch_size=self.patch_size,
        )

    @model_validator(mode="after")
    def _check_grid(self) -> Self:
        _ = self.grid
        return self


class ViewSection(ClipGeometry):
    """How views are drawn (MVD's distillation sampling and MultiScaleCrop) and their token grid."""

    crop: Literal["multiscale", "center"] = "multiscale"
    """`multiscale`: MVD's ten crop shapes at thirteen offsets. `center`: the largest centred square."""
    crop_scales: tuple[float, ...] = (1.0, 0.875, 0.75, 0.66)
    """Sizes of the multi-scale crop, as shares of the shorter side."""
    groups: Positive = 1
    """Views a video; epoch e trains on group e mod groups."""
    seed: int = 0
    """Seed of every draw of the views."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not self.crop_scales or not all(0.0 < scale <= 1.0 for scale in self.crop_scales):
            raise ValueError(f"crop_scales must lie in (0, 1], not {self.crop_scales}")
        return self


def teacher_kind(column: str) -> TeacherName | None:
    """The kind of teacher whose targets a store's column of this name holds: `video` for `video_h`."""
    return next((kind for kind in TEACHER_NAMES if column == kind or column.startswith(f"{kind}_")), None)


class TeacherSection(Section):
    """One frozen teacher: `image` or `video`."""

    weights: str
    """A .pth, .safetensors or Hugging Face folder; `timm:NAME`; or `random:ARCH[:SEED]` for dry runs."""
    sha256: str | None = None
    """Pins the weights: the hash that `plan` prints. Needed where the file itself is not at hand."""
    heads: Positive | None = None
    """Attention heads, where the width does not tell (S, B, L and H are known)."""
    image_size: Positive | None = None
    """Input side in pixels when it is not the view's (196 for MAE H/14); resized from the same crop."""
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    """Autocast of the teacher's forward pass; recorded in the store."""
    column: str | None = None
    """The store's column with its targets, such as `video_h` for a second video teacher; default: `image` or `video`.
    """


class StoreSection(Section):
    """How targets are stored."""

    container: Literal["zarr", "tar"] = "zarr"
    codec: Literal["float32", "float16", "bfloat16", "int8"] = "float16"
    rows_per_shard: Positive = 64
    """Views of one shard file: the unit of commit and resume."""
    batch_rows: Positive = 8
    """Views of one teacher batch. Part of the store's identity: it decides the last bits of the targets."""
    max_relative_error: Annotated[float, Field(gt=0.0)] | None = None
    """What coding may cost a row at most (relative L2); `extract` refuses a codec that misses it on the first shard."""


# ---- models ------------------------------------------------------------------------------------------------------


class DecoderSection(Section):
    """The shape of one decoder; None means the encoder's."""

    depth: Positive = 2
    width: Positive | None = None
    heads: Positive | None = None


class EncoderSection(Section):
    """The shape of an encoder."""

    arch: Arch = "vit_small"
    width: Positive | None = None
    """Overrides the arch (with depth and heads): for encoders of other sizes."""
    depth: Positive | None = None
    heads: Positive | None = None


class StudentSection(EncoderSection):
    """The student encoder and its decoders."""

    drop_path: Fraction = 0.1
    """Largest stochastic-depth rate; grows linearly over the blocks, anew in each decoder."""
    decoder: DecoderSection = DecoderSection()
    checkpoint_activations: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""
    compile: bool = False
    """torch.compile the student (static shapes: token counts are fixed by the mask)."""


class MaskSection(Section):
    """Which tokens the student does not see."""

    kind: Literal["tube", "random"] = "tube"
    ratio: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.9


class LossSection(Section):
    """Masked feature regression."""

    kind: Literal["smooth_l1", "l1", "l2"] = "smooth_l1"
    beta: Annotated[float, Field(gt=0.0)] = 1.0
    """Width of SmoothL1's quadratic part."""
    normalize_targets: bool = False
    """Layer-normalise targets (no affine, eps 1e-6). Off in every released recipe."""
    weights: dict[TeacherName, Annotated[float, Field(ge=0.0)]] = {"image": 1.0, "video": 1.0}
    """Weight of each teacher's loss; a teacher of weight 0 is not read, and its decoder is not built."""


# ---- optimisation ------------------------------------------------------------------------------------------------


class OptimSection(Section):
    """AdamW with linear warm-up and cosine decay, both per optimiser step."""

    epochs: Annotated[float, Field(gt=0.0)] = 400
    """Length of the schedule."""
    stop_after_epochs: Annotated[float, Field(gt=0.0)] | None = None
    """Train only this long of the schedule: the released checkpoint-399 of a 401-epoch schedule is 400."""
    warmup_epochs: Annotated[float, Field(ge=0.0)] = 40
    batch_size: Positive = 1024
    """Samples of one optimiser step over all processes: the same for every world size."""
    micro_batch_size: Positive = 16
    """Most samples of one forward pass of one process; the rest is gradient accumulation."""
    base_lr: Annotated[float, Field(gt=0.0)] = 1.5e-4
    """Peak learning rate for lr_reference_batch samples; scaled linearly with batch_size."""
    min_lr: Annotated[float, Field(ge=0.0)] = 1e-5
    """Floor of the cosine; scaled like base_lr."""
    lr_reference_batch: Positive = 256
    weight_decay: Annotated[float, Field(ge=0.0)] = 0.05
    betas: tuple[float, float] = (0.9, 0.95)
    eps: Annotated[float, Field(gt=0.0)] = 1e-8
    clip_grad_norm: Annotated[float, Field(gt=0.0)] | None = None
    layer_decay: Annotated[float, Field(gt=0.0, le=1.0)] | None = None
    """Layer-wise learning-rate decay (fine-tuning)."""

    @property
    def peak_lr(self) -> float:
        return self.base_lr * self.batch_size / self.lr_reference_batch

    @property
    def floor_lr(self) -> float:
        return self.min_lr * self.batch_size / self.lr_reference_batch


class TrainingSection(Section):
    """How a run is carried out; nothing here changes what is learnt, except seed and precision."""

    seed: int = 0
    precision: Precision = "no"
    """Autocast: `no` is float32 throughout."""
    workers: Annotated[int, Field(ge=0)] = 8
    """Loader processes of each training process; 0 loads in the training process."""
    prefetch_batches: Positive = 2
    """Micro-batches that each worker keeps ready."""
    log_every_steps: Positive = 10
    checkpoint_every_epochs: Annotated[float, Field(gt=0.0)] = 10
    """Fractions are allowed: 0.5 saves twice an epoch."""
    keep_last: Positive = 2
    """Resume states kept; older ones are deleted."""
    pixel_check_fraction: Annotated[float, Field(ge=0.0, le=1.0)] = 0.01
    """Share of samples whose rendered pixels are hashed again (and the whole first batch)."""
    shuffle_window_shards: Positive = 64
    """Rows are shuffled within this many shards: bounds the files that are open at a time."""
    tensorboard: bool = True


class QuirkSection(Section):
    """The released code's behaviour where it differs from what its paper or names suggest."""

    decay_mask_tokens: bool = True
    """The released code means to exempt mask tokens from weight decay but names the wrong parameter."""


# ---- the recipes -------------------------------------------------------------------------------------------------


class DistillRecipe(Section):
    """Masked feature regression against one or two frozen teachers."""

    kind: Literal["distill"]
    name: str
    targets: Literal["cached", "online"] = "cached"
    """`cached` reads the store; `online` runs the teachers in the trainer: the oracle, and the slow way."""
    view: ViewSection = ViewSection()
    teachers: dict[TeacherName, TeacherSection]
    store: StoreSection = StoreSection()
    student: StudentSection = StudentSection()
    mask: MaskSection = MaskSection()
    loss: LossSection = LossSection()
    optim: OptimSection = OptimSection()
    training: TrainingSection = TrainingSection()
    quirks: QuirkSection = QuirkSection()

    @property
    def active_teachers(self) -> tuple[TeacherName, ...]:
        """Teachers with a loss weight above zero, image before video."""
        return tuple(n for n in TEACHER_NAMES if n in self.teachers and self.loss.weights.get(n, 0.0) > 0.0)

    @property
    def active_columns(self) -> dict[TeacherName, str]:
        """The store's columns with the targets of the active teachers."""
        return {name: self.column(name) for name in self.active_teachers}

    def column(self, name: TeacherName) -> str:
        """The store's column with the targets of a teacher."""
        return self.teachers[name].column or name

    @model_validator(mode="after")
    def _check(self) -> Self:
        for name in self.teachers:
            if teacher_kind(self.column(name)) != name:
                raise ValueError(
                    f"teachers.{name}.column is {self.column(name)!r}; allowed: {name}, or {name}_ and more"
                )
        if not self.active_teachers:
            raise ValueError("no teacher has a loss weight above zero: see teachers and loss.weights")
        return self


class PretrainModelSection(EncoderSection):
    """An encoder and the light decoder of masked pixel regression."""

    arch: Arch = "vit_base"
    decoder: DecoderSection = DecoderSection(depth=4, width=384, heads=6)
    drop_path: Fraction = 0.0


class PretrainRecipe(Section):
    """A teacher from scratch: MAE on single frames or VideoMAE on clips."""

    kind: Literal["pretrain"]
    name: str
    method: Literal["mae", "videomae"]
    view: ViewSection = ViewSection()
    """MAE uses one random frame of each video with a random resized crop and flip; VideoMAE uses the view as it is."""
    model: PretrainModelSection = PretrainModelSection()
    mask: MaskSection = MaskSection()
    normalize_targets: bool = True
    """Normalise each patch's pixels (MAE: over pixels and channels jointly; VideoMAE: per channel)."""
    optim: OptimSection = OptimSection()
    training: TrainingSection = TrainingSection()


class AugmentSection(Section):
    """Training augmentation of fine-tuning, one draw a clip."""

    area: tuple[float, float] = (0.08, 1.0)
    """Share of the frame that a random resized crop covers."""
    aspect: tuple[float, float] = (0.75, 4 / 3)
    flip: Fraction | Literal[1] = 0.5
    """Probability of a horizontal flip; 0 for Something-Something."""


class ClassifierSection(EncoderSection):
    """The fine-tuned model: encoder, mean over tokens, LayerNorm, dropout, linear head."""

    classes: Annotated[int, Field(ge=2)]
    drop_path: Fraction = 0.1
    head_dropout: Fraction = 0.0
    head_init_scale: Annotated[float, Field(gt=0.0)] = 0.001


class ClipSection(ClipGeometry):
    """Which frames fine-tuning and testing look at."""

    sampling: Literal["dense", "uniform"] = "dense"
    """`dense`: consecutive frames at the stride (Kinetics). `uniform`: one frame a segment (Something-Something)."""


class EvaluationSection(Section):
    """The multi-view test: softmax averaged over segments x crops."""

    segments: Positive = 5
    crops: Literal[1, 3] = 3
    batch_size: Positive = 16


class FinetuneRecipe(Section):
    """Supervised training of a student's encoder, and its multi-view test."""

    kind: Literal["finetune"]
    name: str
    clip: ClipSection = ClipSection()
    model: ClassifierSection
    augment: AugmentSection = AugmentSection()
    label_smoothing: Fraction = 0.1
    optim: OptimSection = OptimSection(epochs=75, warmup_epochs=5, betas=(0.9, 0.999), layer_decay=0.75)
    training: TrainingSection = TrainingSection()
    evaluation: EvaluationSection = EvaluationSection()


R = TypeVar("R", "DistillRecipe", "PretrainRecipe", "FinetuneRecipe")
Recipe: TypeAlias = DistillRecipe | PretrainRecipe | FinetuneRecipe
_KINDS: Mapping[str, type[DistillRecipe] | type[PretrainRecipe] | type[FinetuneRecipe]] = {
    "distill": DistillRecipe,
    "pretrain": PretrainRecipe,
    "finetune": FinetuneRecipe,
}


# ---- load, override, dump ----------------------------------------------------------------------------------------


def load_recipe(source: str | Path | Mapping[str, Any], overrides: Iterable[str] = ()) -> Recipe:
    """Read, override and validate a recipe.

    Args:
        source: a YAML file, the name of a recipe that ships (`distill/vit_s_from_vit_b_k400`), or a mapping.
        overrides: `dotted.path=value` strings; values are YAML.

    Raises:
        RecipeError: no such file, not YAML, an unknown key (with the nearest known name), or a bad value.
    """
    if isinstance(source, Mapping):
        data, origin = copy.deepcopy(dict(source)), "recipe"
    else:
        path = find_recipe(source)
        data, origin = _read_yaml(path), str(source)
    for override in overrides:
        _apply(data, override)
    kind = data.get("kind")
    model = _KINDS.get(kind) if isinstance(kind, str) else None
    if model is None:
        raise RecipeError(f"{origin}: kind is {kind!r}; allowed: {', '.join(_KINDS)}")
    try:
        return model.model_validate(data)
    except ValidationError as error:
        raise RecipeError(_explain(error, model, origin)) from None


def load_distill(source: str | Path | Mapping[str, Any], overrides: Iterable[str] = ()) -> DistillRecipe:
    """`load_recipe`, refusing other kinds."""
    return _of_kind(load_recipe(source, overrides), DistillRecipe, source)


def load_pretrain(source: str | Path | Mapping[str, Any], overrides: Iterable[str] = ()) -> PretrainRecipe:
    """`load_recipe`, refusing other kinds."""
    return _of_kind(load_recipe(source, overrides), PretrainRecipe, source)


def load_finetune(source: str | Path | Mapping[str, Any], overrides: Iterable[str] = ()) -> FinetuneRecipe:
    """`load_recipe`, refusing other kinds."""
    return _of_kind(load_recipe(source, overrides), FinetuneRecipe, source)


def dump_recipe(recipe: Recipe) -> str:
    """The resolved recipe as YAML; loading it gives an equal recipe."""
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def shipped_recipes() -> dict[str, Path]:
    """Name (`folder/stem`) to file of every recipe that comes with the package."""
    root = Path(__file__).parent / "configs"
    return {path.relative_to(root).with_suffix("").as_posix(): path for path in sorted(root.glob("*/*.yaml"))}


def find_recipe(source: str | Path) -> Path:
    """The YAML file that `source` means: a path, or the name of a recipe that ships.

    Raises:
        RecipeError: neither; the nearest names are given.
    """
    path = Path(source)
    if path.is_file():
        return path
    shipped = shipped_recipes()
    if str(source) in shipped:
        return shipped[str(source)]
    near = difflib.get_close_matches(str(source), shipped, n=3, cutoff=0.4)
    hint = f" Did you mean {' or '.join(near)}?" if near else ""
    raise RecipeError(
        f"{source}: no such recipe file, and none of that name ships.{hint} `mvd-offline recipes list` shows them all."
    )


def recipe_header(text: str) -> list[str]:
    """The comment lines that open a recipe's file, without the number signs; the first says what it reproduces."""
    lines = itertools.takewhile(lambda line: line.startswith("#"), text.splitlines())
    return [line.lstrip("#").strip() for line in lines]


def _of_kind(recipe: Recipe, expected: type[R], source: object) -> R:
    if not isinstance(recipe, expected):
        wanted = next(kind for kind, model in _KINDS.items() if model is expected)
        raise RecipeError(f"{source}: this is a {recipe.kind} recipe; a {wanted} recipe is needed here")
    return recipe


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path}: not readable as YAML: {error}") from None
    if not isinstance(data, dict):
        raise RecipeError(f"{path}: a recipe is a YAML mapping, not {type(data).__name__}")
    return data


def _apply(data: dict[str, Any], override: str) -> None:
    dotted, separator, text = override.partition("=")
    keys = dotted.split(".")
    if not separator or not all(keys):
        raise RecipeError(f"--set {override!r}: write it as dotted.path=value, for example --set optim.epochs=10")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        raise RecipeError(f"--set {override!r}: {text!r} is not a YAML value") from None
    node = data
    for key in keys[:-1]:
        child = node.setdefault(key, {})
        if not isinstance(child, dict):
            raise RecipeError(f"--set {override!r}: {key} is a value, not a section")
        node = child
    node[keys[-1]] = _number(value)


def _number(value: Any) -> Any:
    # YAML 1.1 reads 1e-4 (no dot) as a string; people mean the number.
    if isinstance(value, str) and re.fullmatch(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+", value):
        return float(value)
    return value


def _explain(error: ValidationError, model: type[BaseModel], origin: str) -> str:
    lines = []
    for item in error.errors():
        path = [str(part) for part in item["loc"] if part != "[key]"]
        dotted = ".".join(path) or "recipe"
        if item["type"] == "extra_forbidden":
            known = _known_keys(model, path[:-1])
            near = difflib.get_close_matches(path[-1], known, n=1)
            hint = f"; did you mean {near[0]}?" if near else f"; known: {', '.join(known)}"
            lines.append(f"{dotted} is no known key{hint}")
        elif item["type"] == "missing":
            lines.append(f"{dotted} is missing")
        else:
            message = item["msg"].removeprefix("Value error, ")
            shown = f" (found {item['input']!r})" if not isinstance(item["input"], dict) else ""
            lines.append(f"{dotted}: {message[:1].lower()}{message[1:]}{shown}")
    return f"{origin}: " + "; ".join(lines)


def _known_keys(model: type[BaseModel], path: list[str]) -> list[str]:
    """Field names of the section at `path`; an empty list where the path leaves the models."""
    current: Any = model
    for part in path:
        fields = getattr(current, "model_fields", {})
        if part not in fields:
            # A mapping's key, such as teachers.image: its values are the section.
            continue
        current = fields[part].annotation
        arguments = getattr(current, "__args__", ())
        if not isinstance(current, type) or arguments:
            sections = [a for a in arguments if isinstance(a, type) and issubclass(a, BaseModel)]
            current = sections[0] if sections else None
    return list(getattr(current, "model_fields", {}))
