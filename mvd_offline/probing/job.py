"""A frozen encoder judged by small classifiers on its features, which are extracted once and kept in stores."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias, get_args

import torch
from accelerate import Accelerator
from torch import Tensor

from mvd_offline.errors import MvdError, UsageError
from mvd_offline.evaluation.scoring import Predictions, Scores, score
from mvd_offline.evaluation.videos import Unreadable, Unreadables, known_unreadable, unreadable_error
from mvd_offline.models.saving import write_whole
from mvd_offline.probing.attentive import AttentiveSettings, attentive_scores, fit_attentive
from mvd_offline.probing.encoders import EncoderOverrides, FrozenEncoder, open_encoder
from mvd_offline.probing.labels import LabelledVideos, read_labelled
from mvd_offline.probing.pooled import PooledKind, pooled_scores
from mvd_offline.probing.preparing import ExtractionOptions, Split, Wanted, prepare_features
from mvd_offline.probing.stores import FeatureStore, read_means, unreadable_views
from mvd_offline.processes import join_launch
from mvd_offline.report.leaving import refresh_report
from mvd_offline.training.run import PROBE_FILE, PROBE_FOLDER, saved_step
from mvd_offline.video.views import Plan

RESULT_FILE: Final = PROBE_FILE
ProbeKind: TypeAlias = Literal["linear", "attentive", "knn"]
PROBE_KINDS: Final[tuple[ProbeKind, ...]] = get_args(ProbeKind)
DEFAULT_ENCODER: Final = EncoderOverrides()
DEFAULT_ATTENTIVE: Final = AttentiveSettings()


@dataclass(frozen=True)
class ProbeReport:
    """What a call found.

    Attributes:
        encoder: its identity, as the stores record it.
        view: of test clips.
        views: of each training video.
        features: `store_id/column_id`, by split.
        clips: that have features, by split.
        unreadable: videos that have none, by split, with the reason.
        unreadables: what was done with those of the test.
        extraction_seconds: of this call; 0 where the features were there.
        seconds: that each probe of this call took, reading features included.
        probes: accuracies; also those that earlier calls found on the same features.
        step: of the run in whose folder this lies, after which it had these weights; None elsewhere.
    """

    checkpoint: str
    encoder: Mapping[str, Any]
    view: Mapping[str, Any]
    views: int
    features: Mapping[Split, str]
    clips: Mapping[Split, int]
    unreadable: Mapping[Split, Sequence[Unreadable]]
    unreadables: Unreadables
    extraction_seconds: float
    seconds: Mapping[ProbeKind, float]
    probes: Mapping[ProbeKind, Scores]
    step: int | None = None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def probe(
    checkpoint: str | Path,
    kinds: Sequence[ProbeKind],
    *,
    train: Path,
    test: Path,
    out: Path,
    store_dir: Path | None = None,
    encoder: EncoderOverrides = DEFAULT_ENCODER,
    extraction: ExtractionOptions,
    attentive: AttentiveSettings = DEFAULT_ATTENTIVE,
    views: int = 1,
    unreadables: Unreadables = "error",
) -> ProbeReport | None:
    """Fit probes on the frozen features of one catalog and test them on another's; writes `probe.json` into `out`.

    The features are extracted first, where they are not there yet; under `accelerate launch` by all processes.

    Args:
        checkpoint: whatever `load_teacher` takes, students among it, or a run of `distill`.
        store_dir: holds the stores of features, `train` and `test`; `features` in `out` when None.
        views: of each training video.

    Returns:
        the report on the main process, None on others.

    Raises:
        UsageError: videos without labels, or catalogs of other classes; nothing is computed then.
        IdentityError: the stores hold features of another encoder, of other views or of other videos.
        MvdError: unreadable test videos.
    """
    # A process that is done early waits for the others in the end.
    accelerator = join_launch(patience=timedelta(days=7))
    videos = read_labelled(train, test)
    if unreadables == "error" and videos.test.unreadable:
        raise unreadable_error(known_unreadable(videos.test))
    frozen = open_encoder(checkpoint, encoder)
    folder, tokens = store_dir or out / "features", "attentive" in kinds
    wanted: dict[Split, Wanted] = {
        "train": Wanted(train, folder / "train", frozen.train_view(views), tokens),
        "test": Wanted(test, folder / "test", frozen.view, tokens),
    }
    features, spent = prepare_features(wanted, frozen, extraction, accelerator)
    job = _Job(features, videos, frozen, accelerator, unreadables)
    results = {kind: job.run(kind, attentive, out, extraction.workers) for kind in dict.fromkeys(kinds)}
    if not accelerator.is_main_process:
        return None
    report = ProbeReport(
        checkpoint=frozen.weights,
        encoder=frozen.teacher.identity(),
        view=frozen.view.model_dump(mode="json"),
        views=views,
        features={split: f"{one.store.store_id}/{one.spec.column_id}" for split, one in features.items()},
        clips={split: len(one.views) for split, one in features.items()},
        unreadable=job.unreadable,
        unreadables=unreadables,
        extraction_seconds=spent,
        seconds={kind: seconds for kind, (_, seconds) in results.items()},
        step=saved_step(out.parent) if out.name == PROBE_FOLDER else None,
        probes={kind: found for kind, (found, _) in results.items() if found is not None},
    )
    _write(out / RESULT_FILE, report)
    if out.name == PROBE_FOLDER:
        refresh_report(out.parent)
    return report


class _Job:
    """Probes of features that are there."""

    def __init__(
        self,
        features: Mapping[Split, FeatureStore],
        videos: LabelledVideos,
        encoder: FrozenEncoder,
        accelerator: Accelerator,
        unreadables: Unreadables,
    ) -> None:
        self._features, self._videos, self._encoder, self._accelerator = features, videos, encoder, accelerator
        self.unreadable = {split: unreadable_views(one) for split, one in features.items()}
        if self.unreadable["test"] and unreadables == "error":
            raise unreadable_error(self.unreadable["test"])
        for one in features.values():
            if not len(one.views):
                raise UsageError(f"{one.store.root}: none of its videos can be read, so there is nothing to probe.")
        self._wrong = tuple(self.unreadable["test"]) if unreadables == "wrong" else ()

    def run(
        self, kind: ProbeKind, attentive: AttentiveSettings, out: Path, workers: int
    ) -> tuple[Scores | None, float]:
        """A probe's result, on the main process, and its seconds; all processes call it."""
        began = time.perf_counter()
        found = self._attentive(attentive, out, workers) if kind == "attentive" else self._pooled(kind)
        return found, time.perf_counter() - began

    def _pooled(self, kind: PooledKind) -> Scores | None:
        if not self._accelerator.is_main_process:
            return None
        train, test = (read_means(self._features[split]) for split in ("train", "test"))
        labels = torch.from_numpy(self._features["train"].labels)
        return self._score(pooled_scores(kind, train, labels, test, self._videos.classes, self._accelerator.device))

    def _attentive(self, settings: AttentiveSettings, out: Path, workers: int) -> Scores | None:
        head = fit_attentive(
            self._features["train"],
            self._videos.classes,
            self._encoder.teacher.arch.heads,
            settings,
            folder=out,
            workers=workers,
            accelerator=self._accelerator,
        )
        if not self._accelerator.is_main_process:
            return None
        return self._score(attentive_scores(head, self._features["test"], self._accelerator.device))

    def _score(self, scores: Tensor) -> Scores:
        if not bool(scores.isfinite().all()):
            raise MvdError(
                f"the probe's scores are not finite: look at the features of {self._features['train'].store.root} with "
                "`mvd-offline shards stats`; the encoder's weights may be damaged, or its training diverged."
            )
        test = self._features["test"]
        plan = Plan.read(test.store.plan_path)
        return score(
            Predictions(
                video_ids=tuple(plan[view].video_id for view in test.views.tolist()),
                labels=test.labels,
                probabilities=scores.double().cpu().numpy(),
                wrong=self._wrong,
                names=self._videos.names,
            )
        )


def _write(path: Path, report: ProbeReport) -> None:
    """The report as JSON, with what earlier calls found on the same features by other probes."""
    data = report.to_json()
    if path.is_file():
        before = json.loads(path.read_text(encoding="utf-8"))
        if all(before.get(key) == data[key] for key in ("features", "unreadables")):
            data["probes"] = before["probes"] | data["probes"]
            data["seconds"] = before["seconds"] | data["seconds"]
    write_whole(path, (json.dumps(data, indent=2) + "\n").encode())
