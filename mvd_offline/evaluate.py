"""The multi-view test of a fine-tuned run: softmax averaged over segments x crops of each video."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator, InitProcessGroupKwargs
from accelerate.utils import gather_object
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from mvd_offline.errors import MvdError, UsageError, VideoError
from mvd_offline.finetune import CLASSES_FILE, CLASSIFIER_FILE
from mvd_offline.models.inputs import normalize
from mvd_offline.models.loading import load_classifier
from mvd_offline.models.saving import write_whole
from mvd_offline.progress import WorkProgress
from mvd_offline.recipe import ClipSection, EvaluationSection, load_finetune
from mvd_offline.training.catalogs import CatalogRows
from mvd_offline.training.run import RECIPE_FILE
from mvd_offline.video.augment import multi_crop_views
from mvd_offline.video.catalog import Video
from mvd_offline.video.decode import decode
from mvd_offline.video.sampling import dense_test_indices, uniform_test_indices

RESULT_FILE = "evaluation.json"
PER_CLASS_FILE = "per_class.csv"


@dataclass(frozen=True)
class ClassResult:
    """Videos of one class, and how many of them were right."""

    label: int
    name: str
    videos: int
    top1: int
    top5: int


@dataclass(frozen=True)
class Evaluation:
    """Accuracies are shares of `videos`; each video counts once, whatever the number of processes."""

    top1: float
    top5: float
    videos: int
    segments: int
    crops: int
    classes: tuple[ClassResult, ...]
    skipped: tuple[tuple[str, str], ...] = field(default=())

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def evaluate(
    run: Path, *, catalog_path: Path, skip_unreadable: bool = False, accelerator: Accelerator | None = None
) -> Evaluation | None:
    """Test the classifier of a run; writes `evaluation.json` and `per_class.csv` beside it.

    Args:
        skip_unreadable: leave unreadable videos out, and say so; otherwise they are an error.

    Returns:
        the result on the main process, None on others.

    Raises:
        UsageError: no finished run, or classes that differ from the run's.
        MvdError: unreadable test videos (the first ten are listed), or an output that is not finite.
    """
    # A process that is done early waits for the others in the end.
    patience = InitProcessGroupKwargs(timeout=timedelta(days=1))
    accelerator = accelerator or Accelerator(kwargs_handlers=[patience])
    if not (run / CLASSIFIER_FILE).is_file():
        raise UsageError(f"{run} has no {CLASSIFIER_FILE}: give the run folder of `mvd-offline finetune`.")
    recipe = load_finetune(run / RECIPE_FILE)
    rows = CatalogRows(catalog_path)
    rows.require_labels(recipe.model.classes)
    _check_classes(run, rows)
    if rows.left_out and not skip_unreadable:
        raise _unreadable(rows.left_out)

    batches = ViewBatches(rows.videos, rows.root, recipe.clip, recipe.evaluation)
    model = load_classifier(run / CLASSIFIER_FILE).to(accelerator.device)
    found, failed = _probabilities(model, batches, recipe.evaluation.batch_size, recipe.training.workers, accelerator)
    everything: list[Any] = gather_object([(found, failed)])
    if not accelerator.is_main_process:
        return None
    probabilities = {row: value for part, _ in everything for row, value in part.items()}
    failures = sorted({row: reason for _, part in everything for row, reason in part.items()}.items())
    skipped = rows.left_out + [(rows.videos[row].video_id, reason) for row, reason in failures]
    if skipped and not skip_unreadable:
        raise _unreadable(skipped)
    _refuse_non_finite(probabilities, rows.videos, run)
    if not probabilities:
        raise UsageError(f"{catalog_path}: none of its videos can be read, so there is nothing to test.")
    result = score(probabilities, rows.videos, rows.classes, recipe.evaluation, skipped)
    _write(run, result)
    return result


def score(
    probabilities: Mapping[int, NDArray[np.float64]],
    videos: Sequence[Video],
    names: Sequence[str],
    section: EvaluationSection,
    skipped: Sequence[tuple[str, str]] = (),
) -> Evaluation:
    """Accuracies from each video's mean probabilities (classes,), by row of `videos`."""
    totals: dict[int, list[int]] = {}
    for row in sorted(probabilities):
        label = videos[row].label
        # Ties go to the lower class, so that the result does not depend on the sort.
        ranked = np.argsort(-probabilities[row], kind="stable")[:5]
        counts = totals.setdefault(label, [0, 0, 0])
        counts[0] += 1
        counts[1] += int(ranked[0] == label)
        counts[2] += int(label in ranked)
    classes = tuple(
        ClassResult(label, names[label] if names else str(label), *totals[label]) for label in sorted(totals)
    )
    count = len(probabilities)
    return Evaluation(
        top1=sum(c.top1 for c in classes) / count,
        top5=sum(c.top5 for c in classes) / count,
        videos=count,
        segments=section.segments,
        crops=section.crops,
        classes=classes,
        skipped=tuple(skipped),
    )


# ---- views -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ViewBatch:
    """Every view of some videos: `clips` uint8 (rows x views, T, S, S, 3), video by video, clip by clip, crop by crop.

    `failed` has the reasons of the videos that could not be read, by row; they have no clips.
    """

    rows: tuple[int, ...]
    clips: Tensor | None
    failed: dict[int, str]


class ViewBatches(Dataset[ViewBatch]):
    """Item i is a batch of whole videos: a function of catalog and recipe alone, so that every launch runs the same.

    A batch holds as many videos as have at most `batch_size` views together, and at least one.
    """

    def __init__(self, videos: Sequence[Video], root: Path, clip: ClipSection, section: EvaluationSection) -> None:
        self._videos, self._root, self._clip, self._section = videos, root, clip, section
        self._per_batch = max(1, section.batch_size // (section.segments * section.crops))

    def __len__(self) -> int:
        return -(-len(self._videos) // self._per_batch)

    def __getitem__(self, item: int) -> ViewBatch:
        clips: dict[int, NDArray[np.uint8]] = {}
        failed: dict[int, str] = {}
        first = item * self._per_batch
        for row in range(first, min(first + self._per_batch, len(self._videos))):
            try:
                clips[row] = self.views(row)
            except VideoError as error:
                failed[row] = error.reason
        stacked = torch.from_numpy(np.concatenate(list(clips.values()))) if clips else None
        return ViewBatch(tuple(clips), stacked, failed)

    def views(self, row: int) -> NDArray[np.uint8]:
        """All views of one video, uint8 (segments x crops, T, S, S, 3), from one decode of the frames they need."""
        video, clip, section = self._videos[row], self._clip, self._section
        segments = [_test_indices(video.frames, k, clip, section) for k in range(section.segments)]
        wanted = sorted({index for indices in segments for index in indices})
        frames = decode(self._root / video.path, wanted, reader=video.reader).frames
        if frames.shape[1:3] != (video.height, video.width):
            raise VideoError(
                video.path,
                f"frames are {frames.shape[2]} x {frames.shape[1]} pixels, and {video.width} x {video.height} when it "
                "was scanned: the file changed since; scan the videos again",
            )
        crops = multi_crop_views(frames, clip.image_size, section.crops)
        places = [np.searchsorted(wanted, indices) for indices in segments]
        return np.concatenate([crops[:, place] for place in places])


def _test_indices(frames: int, segment: int, clip: ClipSection, section: EvaluationSection) -> tuple[int, ...]:
    if clip.sampling == "dense":
        return dense_test_indices(frames, segment, section.segments, clip.frames, clip.stride)
    return uniform_test_indices(frames, segment, section.segments, clip.frames)


def _probabilities(
    model: nn.Module, batches: ViewBatches, size: int, workers: int, accelerator: Accelerator
) -> tuple[dict[int, NDArray[np.float64]], dict[int, str]]:
    """Mean softmax (float64) over the views of each video of this process, and the reasons of those that failed.

    Args:
        size: most clips of one forward pass.
    """
    means: dict[int, NDArray[np.float64]] = {}
    failed: dict[int, str] = {}
    mine = range(accelerator.process_index, len(batches), accelerator.num_processes)
    loader = DataLoader(batches, sampler=mine, batch_size=None, num_workers=workers, collate_fn=_as_is)
    with WorkProgress("evaluate", len(mine), unit="batches", enabled=accelerator.is_main_process) as progress:
        for done, batch in enumerate(loader, start=1):
            failed |= batch.failed
            if batch.clips is not None:
                with torch.inference_mode():
                    parts = [model(normalize(clips.to(accelerator.device))) for clips in batch.clips.split(size)]
                softmax = torch.softmax(torch.cat(parts).double(), dim=1).view(len(batch.rows), -1, parts[0].shape[1])
                means |= dict(zip(batch.rows, softmax.mean(dim=1).cpu().numpy(), strict=True))
            progress.reach(done, f"{len(means)} videos")
    return means, failed


def _as_is(item: Any) -> Any:
    return item


# ---- checks, files -----------------------------------------------------------------------------------------------


def _check_classes(run: Path, rows: CatalogRows) -> None:
    trained = json.loads((run / CLASSES_FILE).read_text(encoding="utf-8"))
    if trained and rows.classes and list(rows.classes) != trained:
        first = next(
            (pair for pair in zip(trained, rows.classes, strict=False) if pair[0] != pair[1]), (trained, rows.classes)
        )
        raise UsageError(
            f"the classes of this catalog are not those that {run} was trained on: {first[1]!r} stands where the run "
            f"has {first[0]!r}. Scan the test videos with the same list of classes."
        )


def _refuse_non_finite(probabilities: Mapping[int, NDArray[np.float64]], videos: Sequence[Video], run: Path) -> None:
    bad = [videos[row].video_id for row, values in probabilities.items() if not np.isfinite(values).all()]
    if bad:
        raise MvdError(
            f"the classifier's output is not finite for {len(bad)} of {len(probabilities)} test videos, such as "
            f"{bad[0]}; so are the weights, or the training diverged: look at {run / 'metrics.jsonl'}."
        )


def _unreadable(failures: Sequence[tuple[str, str]]) -> MvdError:
    listed = "; ".join(f"{video}: {reason}" for video, reason in failures[:10])
    more = f"; and {len(failures) - 10} more" if len(failures) > 10 else ""
    count = f"{len(failures)} test video{'s' if len(failures) > 1 else ''}"
    return MvdError(
        f"{count} cannot be read ({listed}{more}). A test that leaves videos out is another test: repair them, or say "
        "--skip-unreadable to leave them out knowingly."
    )


def _write(run: Path, result: Evaluation) -> None:
    write_whole(run / RESULT_FILE, (json.dumps(result.to_json(), indent=2) + "\n").encode())
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(["label", "name", "videos", "top1", "top5", "top1_accuracy", "top5_accuracy"])
    for row in result.classes:
        shares = [f"{right / row.videos:.4f}" for right in (row.top1, row.top5)]
        writer.writerow([row.label, row.name, row.videos, row.top1, row.top5, *shares])
    write_whole(run / PER_CLASS_FILE, table.getvalue().encode())
