"""The multi-view test of a fine-tuned run: softmax averaged over segments x crops of each video."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from numpy.typing import NDArray
from torch import nn
from torch.utils.data import DataLoader, Dataset

from mvd_offline.errors import MvdError, UsageError, VideoError
from mvd_offline.finetune import CLASSES_FILE, CLASSIFIER_FILE
from mvd_offline.models.inputs import normalize
from mvd_offline.models.loading import load_classifier
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
        MvdError: unreadable test videos (all are listed), or classes that differ from the run's.
    """
    accelerator = accelerator or Accelerator()
    if not (run / CLASSIFIER_FILE).is_file():
        raise UsageError(f"{run} has no {CLASSIFIER_FILE}: give the run folder of `mvd-offline finetune`.")
    recipe = load_finetune(run / RECIPE_FILE)
    rows = CatalogRows(catalog_path)
    rows.require_labels(recipe.model.classes)
    _check_classes(run, rows)
    if rows.left_out and not skip_unreadable:
        raise _unreadable(rows.left_out)

    mine = range(accelerator.process_index, len(rows.videos), accelerator.num_processes)
    dataset = TestViews(rows.videos, rows.root, recipe.clip, recipe.evaluation, mine)
    model = load_classifier(run / CLASSIFIER_FILE).to(accelerator.device)
    found, failed = _probabilities(model, dataset, recipe.evaluation, recipe.training.workers, accelerator)
    everything: list[Any] = gather_object([(found, failed)])
    if not accelerator.is_main_process:
        return None
    probabilities = {row: value for part, _ in everything for row, value in part.items()}
    failures = sorted({row: reason for _, part in everything for row, reason in part.items()}.items())
    skipped = rows.left_out + [(rows.videos[row].video_id, reason) for row, reason in failures]
    if skipped and not skip_unreadable:
        raise _unreadable(skipped)
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


class TestViews(Dataset[Any]):
    """Item i is clip `i % segments` of a video: (row, uint8 (crops, T, S, S, 3)), or (row, why it is unreadable)."""

    def __init__(
        self, videos: Sequence[Video], root: Path, clip: ClipSection, section: EvaluationSection, rows: Sequence[int]
    ) -> None:
        self._videos, self._root, self._clip, self._section, self._rows = videos, root, clip, section, rows

    def __len__(self) -> int:
        return len(self._rows) * self._section.segments

    def __getitem__(self, item: int) -> tuple[int, NDArray[np.uint8] | str]:
        position, segment = divmod(item, self._section.segments)
        row = self._rows[position]
        video = self._videos[row]
        if self._clip.sampling == "dense":
            indices = dense_test_indices(
                video.frames, segment, self._section.segments, self._clip.frames, self._clip.stride
            )
        else:
            indices = uniform_test_indices(video.frames, segment, self._section.segments, self._clip.frames)
        try:
            frames = decode(self._root / video.path, indices, reader=video.reader).frames
        except VideoError as error:
            return row, error.reason
        return row, multi_crop_views(frames, self._clip.image_size, self._section.crops)


def _probabilities(
    model: nn.Module, views: TestViews, section: EvaluationSection, workers: int, accelerator: Accelerator
) -> tuple[dict[int, NDArray[np.float64]], dict[int, str]]:
    """Mean softmax (float64) over the views of each video, and the reasons of those that failed."""
    sums: dict[int, NDArray[np.float64]] = {}
    failed: dict[int, str] = {}
    loader = DataLoader(views, batch_size=None, num_workers=workers, collate_fn=_as_is)
    for rows, clips in _batches(loader, section.batch_size, failed):
        with torch.inference_mode():
            logits = model(normalize(torch.from_numpy(clips).to(accelerator.device)))
        for row, values in zip(rows, torch.softmax(logits.double(), dim=1).cpu().numpy(), strict=True):
            sums[row] = sums.get(row, 0.0) + values
    views_a_video = section.segments * section.crops
    return {row: total / views_a_video for row, total in sums.items() if row not in failed}, failed


def _batches(
    loader: DataLoader[Any], size: int, failed: dict[int, str]
) -> Iterator[tuple[list[int], NDArray[np.uint8]]]:
    rows: list[int] = []
    clips: list[NDArray[np.uint8]] = []
    for row, crops in loader:
        if isinstance(crops, str):
            failed[row] = crops
            continue
        rows += [row] * len(crops)
        clips += list(crops)
        while len(rows) >= size:
            yield rows[:size], np.stack(clips[:size])
            rows, clips = rows[size:], clips[size:]
    if rows:
        yield rows, np.stack(clips)


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


def _unreadable(failures: Sequence[tuple[str, str]]) -> MvdError:
    listed = "; ".join(f"{video}: {reason}" for video, reason in failures[:10])
    more = f"; and {len(failures) - 10} more" if len(failures) > 10 else ""
    return MvdError(
        f"{len(failures)} test videos cannot be read ({listed}{more}). A test that leaves videos out is another test: "
        "repair them, or say --skip-unreadable to leave them out knowingly."
    )


def _write(run: Path, result: Evaluation) -> None:
    (run / RESULT_FILE).write_text(json.dumps(result.to_json(), indent=2) + "\n", encoding="utf-8")
    with (run / PER_CLASS_FILE).open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["label", "name", "videos", "top1", "top5", "top1_accuracy"])
        for row in result.classes:
            writer.writerow([row.label, row.name, row.videos, row.top1, row.top5, f"{row.top1 / row.videos:.4f}"])
