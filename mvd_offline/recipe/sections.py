"""The parts that recipes are made of: frozen, typed, unknown keys refused."""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated, Literal, Self, TypeAlias

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from mvd_offline.geometry import TokenGrid
from mvd_offline.shards.codecnames import klt_family

TeacherName: TypeAlias = Literal["image", "video"]
TEACHER_NAMES: tuple[TeacherName, ...] = ("image", "video")
# YAML 1.1 reads a bare `no` as false.
Precision: TypeAlias = Annotated[Literal["no", "fp16", "bf16"], BeforeValidator(lambda v: "no" if v is False else v)]
Arch: TypeAlias = Literal["vit_tiny", "vit_small", "vit_base", "vit_large", "vit_huge"]

Fraction: TypeAlias = Annotated[float, Field(ge=0.0, lt=1.0)]
Positive: TypeAlias = Annotated[int, Field(ge=1)]


class Section(BaseModel):
    """A frozen part of a recipe; unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)


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

    crop: Literal["multiscale", "center", "random_resized"] = "multiscale"
    """`multiscale`: MVD's ten crop shapes at thirteen offsets. `center`: the largest centred square.
    `random_resized`: a box of random area and aspect, as for images."""
    crop_scales: tuple[float, ...] = (1.0, 0.875, 0.75, 0.66)
    """Sizes of the multi-scale crop, as shares of the shorter side."""
    crop_area: tuple[float, float] = (0.2, 1.0)
    """Share of the frame that a random resized crop covers."""
    flip: Annotated[float, Field(ge=0.0, le=1.0)] = 0.0
    """Probability of a horizontal flip; no released video recipe flips."""
    num_sample: Positive = 1
    """Clips of each video in a group, one from each of as many equal parts of it (the released `num_sample`). Every
    clip counts in `optim.batch_size`."""
    groups: Positive = 1
    """Views a video; epoch e trains on group e mod groups."""
    seed: int = 0
    """Seed of every draw of the views."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not self.crop_scales or not all(0.0 < scale <= 1.0 for scale in self.crop_scales):
            raise ValueError(f"crop_scales must lie in (0, 1], not {self.crop_scales}")
        if not 0.0 < self.crop_area[0] <= self.crop_area[1] <= 1.0:
            raise ValueError(f"crop_area must be a smallest and a largest share in (0, 1], not {self.crop_area}")
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


class BakeSection(Section):
    """Baked clips: each view's frames as JPEGs in the store, which the teachers see too."""

    quality: Annotated[int, Field(ge=1, le=100)] = 95
    subsampling: Literal["4:4:4", "4:2:2", "4:2:0"] = "4:4:4"

    @property
    def codec(self) -> str:
        """Its name in a store."""
        return f"jpeg-{self.quality}-{self.subsampling.replace(':', '')}"


class KltSection(Section):
    """What codec `klt` learns when a store is planned."""

    relative_error: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.08
    """Of the sample (L2): what its rows may lose."""
    sample_views: Positive = 64
    """Views that the teachers are run on."""


class StoreSection(Section):
    """How targets are stored."""

    container: Literal["zarr", "tar"] = "zarr"
    codec: Literal["float32", "float16", "bfloat16", "int8", "klt"] = "float16"
    klt: KltSection = KltSection()
    rows_per_shard: Positive = 64
    """Views of one shard file: the unit of commit and resume."""
    batch_rows: Positive = 8
    """Views of one teacher batch. Part of the store's identity: it decides the last bits of the targets."""
    max_relative_error: Annotated[float, Field(gt=0.0)] | None = None
    """What coding may cost a row at most (relative L2); `extract` refuses a codec that misses it on the first shard."""
    bake: BakeSection | None = None
    """Keep the clips too: training then reads them instead of decoding videos."""

    @property
    def codec_family(self) -> str:
        """The codec's name in a store, but for what is learnt."""
        return klt_family(self.klt.relative_error) if self.codec == "klt" else self.codec


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


class ProjectorSection(Section):
    """The MLP that takes a decoder's place where the student sees every token (`mask.kind: none`)."""

    depth: Positive = 2
    """Linear layers, with GELU between them."""
    width: Positive | None = None
    """Of the hidden layers; None means the encoder's."""


class StudentSection(EncoderSection):
    """The student encoder and its decoders."""

    init: str | None = None
    """Encoder weights to start from: a student or teacher of this project or an official checkpoint. Those of an
    image encoder are repeated over the frames of a tubelet, and divided by their number."""

    drop_path: Fraction = 0.1
    """Largest stochastic-depth rate; grows linearly over the blocks, anew in each decoder."""
    decoder: DecoderSection = DecoderSection()
    projector: ProjectorSection = ProjectorSection()
    checkpoint_activations: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""
    compile: bool = False
    """torch.compile the student (static shapes: token counts are fixed by the mask)."""


class MaskSection(Section):
    """Which tokens the encoder does not see."""

    kind: Literal["tube", "random"] = "tube"
    """`tube`: the same positions in every slice of the clip."""
    ratio: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.9


class DistillMaskSection(Section):
    """Which tokens the student does not see, and at which it predicts."""

    kind: Literal["tube", "random", "none"] = "tube"
    """`none`: the student sees every token and predicts at every token (per-token distillation); `ratio` is unused."""
    ratio: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.9
    decoded: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    """Share of the masked tokens that are decoded and regressed, drawn anew for every clip and epoch. Below 1 it makes
    decoders and reading cheaper; the paper decodes all."""


class LossSection(Section):
    """Masked feature regression."""

    kind: Literal["smooth_l1", "l1", "l2"] = "smooth_l1"
    beta: Annotated[float, Field(gt=0.0)] = 1.0
    """Width of SmoothL1's quadratic part."""
    normalize_targets: bool = False
    """Layer-normalise targets (no affine, eps 1e-6). Off in every released recipe."""
    weights: dict[TeacherName, Annotated[float, Field(ge=0.0)]] = {"image": 1.0, "video": 1.0}
    """Weight of each teacher's loss; a teacher of weight 0 is not read, and its decoder is not built."""


class PixelSection(Section):
    """A further decoder that regresses the pixels of the masked tokens, as VideoMAE does (paper, table 8)."""

    weight: Annotated[float, Field(gt=0.0)] = 1.0
    """Of its mean squared error in the loss."""
    normalize_targets: bool = True
    """Normalise each cube's pixels by channel."""


class MomentumSection(Section):
    """A teacher that is the moving average of the student's own encoder (paper, table 9); online by its nature."""

    weight: Annotated[float, Field(gt=0.0)] = 1.0
    """Of its loss."""
    decay: tuple[tuple[float, Annotated[float, Field(ge=0.0, le=1.0)]], ...] = (
        (0, 0.999),
        (100, 0.9999),
        (400, 0.99999),
    )
    """(epoch, decay) points, linear in between and constant after the last (BootMAE's schedule)."""
    normalize_targets: bool = True
    """Layer-normalise its features (no affine, eps 1e-6)."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        epochs = [epoch for epoch, _ in self.decay]
        if not epochs or epochs[0] != 0 or any(a >= b for a, b in pairwise(epochs)):
            raise ValueError(f"decay must be (epoch, decay) points with ascending epochs from 0, not {self.decay}")
        return self


class EmaSection(Section):
    """A moving average of the weights, saved as `student_ema.safetensors` or `classifier_ema.safetensors`."""

    decay: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.9999
    """Of each optimiser step."""


class ProbeSection(Section):
    """Probes of the student every so many epochs and at the end, on frozen features: how good it is, in minutes.

    They change nothing of the training. Their accuracies are in the metrics, as `probe/linear_top1` and so on. They
    look at the weights that `student.safetensors` gets, also in a run with `ema`: the last probe is what `mvd-offline
    evaluate RUN --probe` finds. Judge the average by its file, `evaluate RUN/student_ema.safetensors --probe`.
    """

    train: str
    """Catalog of labelled videos to fit on. Its clips are decoded each time: some ten thousand are plenty."""
    test: str
    """Catalog of labelled videos, of the same classes, to test on."""
    kinds: Annotated[tuple[Literal["linear", "knn"], ...], Field(min_length=1)] = ("linear", "knn")
    """`linear`: logistic regression on mean tokens. `knn`: the 20 nearest training clips vote."""
    every_epochs: Annotated[float, Field(gt=0.0)] = 10
    """A checkpoint is saved before each."""


# ---- optimisation ------------------------------------------------------------------------------------------------


class OptimSection(Section):
    """The optimiser, with linear warm-up and cosine decay, both per optimiser step."""

    optimizer: Literal["adamw", "muon"] = "adamw"
    """`muon`: torch's Muon for the matrices of the blocks, AdamW for all else (needs torch 2.9; not in the paper)."""
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
    """How a run is carried out; what is learnt depends on seed, precision, tf32 and shuffle_window_shards."""

    seed: int = 0
    precision: Precision = "no"
    """Autocast: `no` is float32 throughout."""
    tf32: bool = False
    """Let float32 products on NVIDIA GPUs round their factors to TF32: faster, less exact."""
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
    scale_min_lr: bool = True
    """The released code scales `optim.min_lr` with the batch like `base_lr`, so that 1e-4 is a floor of 4e-4."""
    leftover_micro_batch: Positive | None = None
    """Clips of one micro-batch of all processes of the released run. Its epochs go on for the whole micro-batches after
    the last full batch: their gradients have no update of their own and are added to the next epoch's first. None
    leaves these clips out."""

    def floor_lr(self, optim: OptimSection) -> float:
        """Where the cosine of a run ends."""
        return optim.floor_lr if self.scale_min_lr else optim.min_lr
