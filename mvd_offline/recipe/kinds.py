"""The kinds of recipes: distill, pretrain, finetune."""

from __future__ import annotations

from typing import Annotated, Literal, Self, TypeAlias

from pydantic import Field, model_validator

from mvd_offline.recipe.augmenting import AugmentSection, MixingSection
from mvd_offline.recipe.sections import (
    TEACHER_NAMES,
    Arch,
    ClipGeometry,
    DecoderSection,
    DistillMaskSection,
    EmaSection,
    EncoderSection,
    Fraction,
    LossSection,
    MaskSection,
    MomentumSection,
    OptimSection,
    PixelSection,
    Positive,
    ProbeSection,
    QuirkSection,
    Section,
    StoreSection,
    StudentSection,
    TeacherName,
    TeacherSection,
    TrainingSection,
    ViewSection,
    teacher_kind,
)


class DistillRecipe(Section):
    """Feature regression against one or two frozen teachers, with or without further objectives."""

    kind: Literal["distill"]
    name: str
    targets: Literal["cached", "online"] = "cached"
    """`cached` reads the store; `online` runs the teachers in the trainer: the oracle, and the slow way."""
    unpack_clips: Literal["loader", "device"] = "loader"
    """Who decodes baked JPEGs: loader processes, exactly as for the teachers, or the device that trains. NVIDIA GPUs
    round otherwise: the student then sees what its teachers saw to within a level or two of 255."""
    view: ViewSection = ViewSection()
    teachers: dict[TeacherName, TeacherSection] = Field(default_factory=dict)
    store: StoreSection = StoreSection()
    student: StudentSection = StudentSection()
    mask: DistillMaskSection = DistillMaskSection()
    loss: LossSection = LossSection()
    pixels: PixelSection | None = None
    momentum: MomentumSection | None = None
    ema: EmaSection | None = None
    optim: OptimSection = OptimSection()
    training: TrainingSection = TrainingSection()
    quirks: QuirkSection = QuirkSection()
    probe: ProbeSection | None = None

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
        if not (self.active_teachers or self.pixels or self.momentum):
            raise ValueError(
                "there is nothing to learn from: no teacher has a loss weight above zero (see teachers and "
                "loss.weights), and neither pixels nor momentum is given"
            )
        if self.unpack_clips == "device" and self.targets == "online":
            raise ValueError(
                "unpack_clips is device, and targets are online: teachers that run beside the student need exactly the "
                "pixels that they would have been stored from; set unpack_clips to loader"
            )
        if self.momentum and self.targets == "cached":
            raise ValueError(
                "a momentum teacher is the student's own moving average and changes with every step, so that its "
                "targets cannot be cached: set targets to online"
            )
        if self.mask.kind == "none" and (self.pixels or self.momentum):
            raise ValueError(
                "with mask.kind none the student sees every token, so that pixels and momentum, which predict what is "
                "hidden, have nothing to teach: use a tube or random mask, or leave them out"
            )
        if self.mask.kind == "none" and self.mask.decoded < 1.0:
            raise ValueError(
                f"mask.decoded {self.mask.decoded:g} is a share of the masked tokens, and mask.kind none masks none: "
                "leave it at 1, or use a tube or random mask"
            )
        return self


class PretrainModelSection(EncoderSection):
    """An encoder and the light decoder of masked pixel regression."""

    arch: Arch = "vit_base"
    decoder: DecoderSection = DecoderSection(depth=4, width=384, heads=6)
    drop_path: Fraction = 0.0


class PretrainRecipe(Section):
    """A teacher from scratch: MAE on images, or single frames of videos; VideoMAE on clips."""

    kind: Literal["pretrain"]
    name: str
    method: Literal["mae", "videomae"]
    view: ViewSection = ViewSection()
    """VideoMAE uses the view as it is. MAE takes a single frame in place of its clips, and resizes bicubically."""
    model: PretrainModelSection = PretrainModelSection()
    mask: MaskSection = MaskSection()
    normalize_targets: bool = True
    """Normalise each patch's pixels (MAE: over pixels and channels jointly; VideoMAE: per channel)."""
    optim: OptimSection = OptimSection()
    training: TrainingSection = TrainingSection()


class ClassifierSection(EncoderSection):
    """The fine-tuned model: encoder, mean over tokens, LayerNorm, dropout, linear head."""

    classes: Annotated[int, Field(ge=2)]
    drop_path: Fraction = 0.1
    head_dropout: Fraction = 0.0
    head_init_scale: Annotated[float, Field(gt=0.0)] = 0.001
    checkpoint_activations: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""


class ClipSection(ClipGeometry):
    """Which frames fine-tuning and testing look at."""

    sampling: Literal["dense", "uniform"] = "dense"
    """`dense`: consecutive frames at the stride (Kinetics). `uniform`: one frame a segment (Something-Something)."""


class EvaluationSection(Section):
    """The multi-view test: softmax averaged over segments x crops."""

    segments: Positive = 5
    """Clips of a video, spread over its length; one is taken from its middle."""
    crops: Positive = 3
    """Squares along the long side of a frame; one is cut from its middle."""
    batch_size: Positive = 16
    """Most views of one forward pass; those of several videos where they fit."""


class FinetuneQuirkSection(Section):
    """The released code's behaviour where it differs from what its paper or names suggest."""

    cutmix_in_time: bool = False
    """The released code cuts the box of CutMix out of frames and rows instead of rows and columns: about 40 % of its
    boxes change a clip at all, while labels are mixed by the area that the box should have had."""


class FinetuneRecipe(Section):
    """Supervised training of a student's encoder, and its multi-view test."""

    kind: Literal["finetune"]
    name: str
    clip: ClipSection = ClipSection()
    model: ClassifierSection
    augment: AugmentSection = AugmentSection()
    mixing: MixingSection | None = None
    label_smoothing: Fraction = 0.1
    ema: EmaSection | None = None
    optim: OptimSection = OptimSection(epochs=75, warmup_epochs=5, betas=(0.9, 0.999), layer_decay=0.75)
    training: TrainingSection = TrainingSection()
    quirks: FinetuneQuirkSection = FinetuneQuirkSection()
    evaluation: EvaluationSection = EvaluationSection()


Recipe: TypeAlias = DistillRecipe | PretrainRecipe | FinetuneRecipe
