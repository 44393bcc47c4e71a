"""`mvd-offline evaluate`."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mvd_offline.cli.common import (
    JsonOption,
    SetOption,
    human_duration,
    print_json,
    print_table,
    refuse_ignored,
    say_next,
)
from mvd_offline.cli.probe import (
    EncoderPrecisionOption,
    EpochsOption,
    FeaturesOption,
    FramesOption,
    HeadsOption,
    PrecisionName,
    ProbeName,
    ProbesOption,
    SizeOption,
    StrideOption,
    TrainOption,
    ViewsOption,
    WorkersOption,
    run_probes,
)

if TYPE_CHECKING:
    from mvd_offline.evaluation.results import Evaluation
    from mvd_offline.evaluation.scoring import Scores
    from mvd_offline.evaluation.splits import SplitsResult
    from mvd_offline.evaluation.subjects import Subject


_UNREADABLE_SHOWN = 20


class UnreadablesName(StrEnum):
    """What becomes of test videos that cannot be read."""

    error = "error"
    wrong = "wrong"
    exclude = "exclude"


class PositionsName(StrEnum):
    """The position table of a classifier."""

    sincos_3d = "sincos_3d"
    interleaved_1d = "interleaved_1d"


def evaluate(
    runs: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="RUN",
            help="Run folder of `finetune`; several give the mean over splits. With --ensemble: logits.parquet files.",
            show_default=False,
        ),
    ] = None,
    videos: Annotated[
        list[Path] | None,
        typer.Option("--videos", help="Catalog of the test videos; one for each RUN.", show_default=False),
    ] = None,
    checkpoint: Annotated[
        Path | None,
        typer.Option(
            "--checkpoint",
            help="A single fine-tuned file instead, official or ours; with --recipe, --out.",
            show_default=False,
        ),
    ] = None,
    recipe: Annotated[
        str | None,
        typer.Option("--recipe", help="Of --checkpoint: its model, clips and views.", show_default=False),
    ] = None,
    positions: Annotated[
        PositionsName | None,
        typer.Option(
            "--positions",
            help="Of an official --checkpoint, which does not tell: sincos_3d is MVD's, interleaved_1d VideoMAE's.",
            show_default="sincos_3d",
        ),
    ] = None,
    unreadable: Annotated[
        UnreadablesName,
        typer.Option("--unreadable", help="Test videos that cannot be read: stop, count as wrong, or leave out."),
    ] = UnreadablesName.error,
    ensemble: Annotated[
        bool, typer.Option("--ensemble", help="Average the probabilities of finished tests, given by their logits.")
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option("--out", help="Folder of the results; by default the run's.", show_default=False),
    ] = None,
    ema: Annotated[bool, typer.Option("--ema", help="Test the moving average of the RUN's weights.")] = False,
    overrides: SetOption = None,
    probes: ProbesOption = None,
    train: TrainOption = None,
    store: FeaturesOption = None,
    views: ViewsOption = 1,
    epochs: EpochsOption = None,
    heads: HeadsOption = None,
    frames: FramesOption = None,
    stride: StrideOption = None,
    image_size: SizeOption = None,
    precision: EncoderPrecisionOption = PrecisionName.float32,
    workers: WorkersOption = 0,
    as_json: JsonOption = False,
) -> None:
    """Test a fine-tuned classifier: softmax averaged over segments x crops. Works under accelerate launch.

    With --probe: judge a pretrained encoder, such as a student, by small classifiers on its frozen features.
    """
    given, catalogs, changes = runs or [], videos or [], overrides or ()
    tested: dict[str, Any] = {"checkpoint": checkpoint, "recipe": recipe, "positions": positions}
    if probes:
        from mvd_offline.probing.encoders import EncoderOverrides

        refuse_ignored("--probe", **tested, ema=ema, ensemble=ensemble, set=overrides)
        if ProbeName.attentive not in probes:
            refuse_ignored("probes without --probe attentive", epochs=epochs)
        run_probes(
            given,
            probes,
            train=train,
            tests=catalogs,
            out=out,
            store=store,
            views=views,
            epochs=epochs,
            encoder=EncoderOverrides(heads, frames, stride, image_size, precision.value),
            unreadables=unreadable.value,
            workers=workers,
            as_json=as_json,
        )
        return
    refuse_ignored(
        "a test without --probe",
        train=train,
        store=store,
        views=views > 1,
        epochs=epochs,
        heads=heads,
        frames=frames,
        stride=stride,
        image_size=image_size,
        precision=precision is not PrecisionName.float32,
        workers=workers,
    )
    if ensemble:
        counted = unreadable is not UnreadablesName.error
        refuse_ignored("--ensemble", **tested, ema=ema, videos=videos, unreadable=counted, set=overrides)
        _ensemble(given, out, as_json)
    elif len(given) > 1:
        refuse_ignored("several runs", **tested)
        from mvd_offline.evaluate import subject_of_run

        _splits([subject_of_run(run, changes, ema=ema) for run in given], catalogs, unreadable, out, as_json)
    else:
        subject = _subject(given, checkpoint, recipe, positions, changes, out, ema)
        _one(subject, catalogs, unreadable, as_json)


def _subject(
    runs: Sequence[Path],
    checkpoint: Path | None,
    recipe: str | None,
    positions: PositionsName | None,
    overrides: Sequence[str],
    out: Path | None,
    ema: bool,
) -> Subject:
    from mvd_offline.errors import UsageError
    from mvd_offline.evaluate import subject_of_run
    from mvd_offline.evaluation.subjects import Subject
    from mvd_offline.recipe import load_finetune

    if bool(runs) == (checkpoint is not None):
        raise UsageError("give either a RUN, the folder of a `finetune`, or --checkpoint with --recipe and --out.")
    if checkpoint is None:
        refuse_ignored("a RUN, which has its own", recipe=recipe, positions=positions)
        return subject_of_run(runs[0], overrides, out, ema=ema)
    refuse_ignored("--checkpoint", ema=ema)
    if recipe is None or out is None:
        raise UsageError(
            f"--checkpoint {checkpoint} needs --recipe, which says its model, clips and views (such as "
            "finetune/vit_b_k400), and --out, the folder of the results."
        )
    return Subject(checkpoint, load_finetune(recipe, overrides), out, positions=positions.value if positions else None)


def _one(subject: Subject, catalogs: Sequence[Path], unreadable: UnreadablesName, as_json: bool) -> None:
    from mvd_offline.errors import UsageError
    from mvd_offline.evaluate import evaluate_subject
    from mvd_offline.runs.folder import RunFolder

    if len(catalogs) != 1:
        raise UsageError(f"a test needs one --videos, the catalog of its test videos; {len(catalogs)} were given.")
    result = evaluate_subject(subject, catalog_path=catalogs[0], unreadables=unreadable.value)
    if result is None:
        return
    if as_json:
        print_json(result.to_json() | {"timing": result.timing})
        return
    typer.echo(_accuracies(result, f" ({_count(result.segments, 'segment')} x {_count(result.crops, 'crop')})"))
    if subject.positions is None and subject.weights.suffix != ".safetensors":
        typer.echo(
            f"positions: {result.settings['positions']}; a file of VideoMAE's, which does not tell, needs "
            "--positions interleaved_1d"
        )
    if subject.step is not None and not RunFolder.read(subject.weights.parent).finished:
        typer.echo(f"note: the run is not at its end; these are its weights after step {subject.step:,}")
    if result.on_training_videos:
        typer.echo("note: these are the very videos that it was trained on")
    _print_unreadable(result)
    if timing := result.timing:
        of = f" of {timing.processes} processes" if timing.processes > 1 else ""
        typer.echo(
            f"{human_duration(timing.seconds)}{of}, {timing.videos_per_second:.3g} videos/s, "
            f"{100 * timing.decode_wait_share:.0f} % of it waiting for decoding"
        )
    _print_files(subject.out)
    weights = shlex.quote(str(subject.weights))
    say_next(f"mvd-offline convert {weights} --to hf --out {shlex.quote(str(subject.out / 'hf'))}")


def _splits(
    subjects: Sequence[Subject],
    catalogs: Sequence[Path],
    unreadable: UnreadablesName,
    out: Path | None,
    as_json: bool,
) -> None:
    from mvd_offline.evaluate import evaluate_splits
    from mvd_offline.evaluation.results import write_json
    from mvd_offline.evaluation.splits import SPLITS_FILE

    result = evaluate_splits(subjects, catalog_paths=catalogs, unreadables=unreadable.value)
    if result is None:
        return
    if out is not None:
        write_json(out / SPLITS_FILE, result.to_json())
    if as_json:
        print_json(result.to_json())
        return
    _print_splits(result)
    if out is not None:
        typer.echo(f"wrote {out / SPLITS_FILE}")


def _print_splits(result: SplitsResult) -> None:
    from rich.markup import escape
    from rich.table import Table

    table = Table("run", "videos", "top-1 %", "top-5 %", "mean class %", "", box=None, pad_edge=False)
    for split in result.splits:
        found = split.result
        row = [f"{100 * value:.2f}" for value in (found.top1, found.top5, found.mean_class_accuracy)]
        table.add_row(escape(split.run), str(found.videos), *row, "was there" if split.read else "")
    for name, values in (("mean", result.mean), ("standard deviation (n - 1)", result.deviation)):
        table.add_row(name, "", *(f"{100 * values[key]:.2f}" for key in ("top1", "top5", "mean_class_accuracy")))
    print_table(table)
    for split in result.splits:
        _print_unreadable(split.result)


def _ensemble(sources: Sequence[Path], out: Path | None, as_json: bool) -> None:
    from mvd_offline.evaluation.ensembles import ENSEMBLE_FILE, check_folder, ensemble
    from mvd_offline.evaluation.results import write_json, write_tables
    from mvd_offline.evaluation.scoring import score

    if out is not None:
        check_folder(out)
    predictions, members = ensemble(sources)
    scores = score(predictions)
    found = {"ensemble": asdict(scores), "members": {name: asdict(member) for name, member in members.items()}}
    if out is not None:
        write_tables(out, predictions, scores)
        write_json(out / ENSEMBLE_FILE, found)
    if as_json:
        print_json(found)
        return
    for name, member in members.items():
        typer.echo(f"{name}: {_accuracies(member)}")
    typer.echo(f"ensemble of {len(members)}: {_accuracies(scores)}")
    if out is not None:
        typer.echo(f"all of this: {out / ENSEMBLE_FILE}")
        _print_files(out)


def _accuracies(scores: Scores, views: str = "") -> str:
    return (
        f"top-1 {100 * scores.top1:.2f} %, top-5 {100 * scores.top5:.2f} % on {scores.videos} videos{views}; "
        f"mean class accuracy {100 * scores.mean_class_accuracy:.2f} %"
    )


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'s' if number != 1 else ''}"


def _print_unreadable(result: Evaluation) -> None:
    what = "counted as wrong" if result.unreadables == "wrong" else "left out"
    for video in result.unreadable[:_UNREADABLE_SHOWN]:
        typer.echo(f"{what}: {video.video_id}: {video.reason}")
    if (more := len(result.unreadable) - _UNREADABLE_SHOWN) > 0:
        typer.echo(f"{what}: {more} more; evaluation.json lists all")


def _print_files(folder: Path) -> None:
    from mvd_offline.evaluation.logits import LOGITS_FILE, PREDICTIONS_FILE
    from mvd_offline.evaluation.results import CONFUSION_PICTURE, CONFUSION_TABLE, PER_CLASS_FILE

    typer.echo(f"per class: {folder / PER_CLASS_FILE}")
    typer.echo(f"confusion: {folder / CONFUSION_PICTURE}, {CONFUSION_TABLE}")
    logits = f", and of each view: {LOGITS_FILE}" if (folder / LOGITS_FILE).is_file() else ""
    typer.echo(f"each video: {folder / PREDICTIONS_FILE}{logits}")
