"""One process and two processes under `accelerate launch` do the same work."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from small_runs import (
    command,
    contents,
    descendants,
    hanging,
    launched,
    metrics,
    plan_small,
    run,
    started,
    wait_until,
    write_recipe,
)

from mvd_offline.cli.main import main
from mvd_offline.models import load_student
from mvd_offline.video.views import Plan


def test_two_processes_extract_the_same_bytes_as_one(made: Path, tmp_path: Path) -> None:
    store = plan_small(made / "catalog.parquet", tmp_path / "store")

    printed = run(launched(2, "extract", store, "--workers", "1"), tmp_path / "log", timeout=200, ranks=2)

    assert "24 ok" in printed, "the summary counts the rows of all processes"
    assert printed.count("Extraction into") == 1
    assert contents(store) == contents(made / "store")


def test_two_runs_at_once_on_one_store_share_the_work_and_both_end_well(made: Path, tmp_path: Path) -> None:
    store = plan_small(made / "catalog.parquet", tmp_path / "store")
    extracting = command("extract", store, "--workers", "1", "--json")
    logs = [tmp_path / "one.log", tmp_path / "two.log"]

    with started(extracting, logs[0]) as one, started(extracting, logs[1]) as two:
        statuses = [process.wait(120) for process in (one, two)]

    printed = [log.read_text() for log in logs]
    assert statuses == [0, 0], printed
    summaries = [json.loads(text[text.index("{") :]) for text in printed]
    assert [summary["sealed"] for summary in summaries] == [True, True]
    assert sum(summary["shards"] for summary in summaries) == 12, "every shard of both columns, none of them twice"
    assert sum(summary["rows"].get("ok", 0) for summary in summaries) == 24
    assert contents(store) == contents(made / "store")


def test_a_run_takes_over_what_a_killed_one_had_claimed(made: Path, tmp_path: Path) -> None:
    store, videos = plan_small(made / "catalog.parquet", tmp_path / "store"), tmp_path / "videos"
    shutil.copytree(made / "videos", videos)
    extracting = [*command("extract", store, "--workers", "1", "--json"), "--root", str(videos)]
    first = next(iter(Plan.read(store / "plan.parquet")))

    with hanging(videos / first.path) as somebody_hangs, started(extracting, tmp_path / "one.log") as one:
        assert wait_until(somebody_hangs, seconds=60), (tmp_path / "one.log").read_text()
        with started([*extracting, "--root", str(made / "videos")], tmp_path / "two.log") as two:
            # All but what the first has claimed: the shard it hangs in, and what it decodes ahead.
            assert wait_until(lambda: committed(store) >= 8, seconds=60, step=0.05)
            assert two.poll() is None, "it waits for the other"
            one.kill()
            assert two.wait(60) == 0, (tmp_path / "two.log").read_text()

    assert contents(store) == contents(made / "store")


def committed(store: Path) -> int:
    return len(list(store.glob("commits/*/*.json")))


# An epoch of twelve rows: one step of eight, and two leftovers of two that join the next epoch's.
LEFTOVERS = {
    "optim.batch_size": 8,
    "optim.epochs": 12,
    "optim.clip_grad_norm": 0.5,
    "ema.decay": 0.7,
    "quirks.leftover_micro_batch": 2,
}


def test_two_processes_that_are_asked_to_stop_leave_a_checkpoint_from_which_one_goes_on_with_the_same_losses(
    made: Path, tmp_path: Path
) -> None:
    recipe = write_recipe(tmp_path / "recipe.yaml", LEFTOVERS)
    alone, together = tmp_path / "alone", tmp_path / "together"

    def distill(folder: Path, micro: int, *options: str) -> list[str]:
        micro_batch = ("--set", f"optim.micro_batch_size={micro}")
        return ["distill", str(recipe), "--store", str(made / "store"), "--run", str(folder), *micro_batch, *options]

    # Two processes accumulate gradients over micro-batches of 1; one process alone takes each batch whole. Without
    # checkpoints between, and with loader processes, which a signal to all of a job reaches too.
    options = ("--set", "training.checkpoint_every_epochs=99", "--set", "training.workers=1")
    with started(launched(2, *distill(together, 1, *options)), tmp_path / "log") as process:
        log = tmp_path / "log"
        assert wait_until(lambda: len(steps_of(together)) >= 3, seconds=100, step=0.05), log.read_text()
        for pid in descendants(process.mark):  # as Slurm does, also to loader processes
            with suppress(ProcessLookupError):  # the loader of a process that was told before it, and has ended
                os.kill(pid, signal.SIGTERM)
        assert process.wait(60) != 0, "the launcher has a status of its own"
        assert re.search(r"stopped by SIGTERM after step \d+ of 12", log.read_text()), log.read_text()
    saved = [int(path.name.removeprefix("step-")) for path in (together / "checkpoints").iterdir()]
    assert saved == [len(steps_of(together))], "the step that was under way is done and saved"
    assert 3 <= saved[0] < 12

    assert main(distill(together, 2)) == 0
    assert main(distill(alone, 8)) == 0
    assert_same_run(together, alone)


@pytest.mark.slow
def test_a_run_goes_on_from_four_processes_to_two_to_one(made: Path, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path / "recipe.yaml", LEFTOVERS | {"quirks.leftover_micro_batch": 4})
    alone, together = tmp_path / "alone", tmp_path / "together"

    def distill(folder: Path, micro: int, epochs: int) -> list[str]:
        options = ("--set", f"optim.micro_batch_size={micro}", "--set", f"optim.stop_after_epochs={epochs}")
        return ["distill", str(recipe), "--store", str(made / "store"), "--run", str(folder), *options]

    run(launched(4, *distill(together, 1, 3)), tmp_path / "four.log", timeout=300, ranks=4)
    run(launched(2, *distill(together, 4, 7)), tmp_path / "two.log", timeout=300, ranks=2)
    assert main(distill(together, 2, 12)) == 0
    assert main(distill(alone, 8, 12)) == 0

    assert_same_run(together, alone)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("optimizer", "atol"),
    # Muon orthogonalises in bfloat16: a last bit of float32 may become one of bfloat16.
    [("adamw", 2e-5), ("muon", 2e-3)],
)
def test_a_sharded_run_goes_on_from_one_process_and_leaves_what_one_process_goes_on_from(
    made: Path, tmp_path: Path, optimizer: str, atol: float
) -> None:
    recipe = write_recipe(tmp_path / "recipe.yaml", LEFTOVERS | {"optim.optimizer": optimizer})
    alone, sharded = tmp_path / "alone", tmp_path / "sharded"

    def distill(folder: Path, epochs: int) -> list[str]:
        options = ("--set", f"optim.stop_after_epochs={epochs}")
        return ["distill", str(recipe), "--store", str(made / "store"), "--run", str(folder), *options]

    assert main(distill(sharded, 3)) == 0
    script = (str(Path(__file__).with_name("sharded.py")), str(recipe), str(made / "store"), str(sharded))
    overrides = ("optim.stop_after_epochs=8", "optim.micro_batch_size=1")
    printed = run(launched(2, *overrides, program=script), tmp_path / "log", timeout=300)
    assert printed.count("holds 0.5") == 2, printed
    assert load_student(sharded / "student.safetensors").targets == {"image": 192, "video": 192}
    assert main(distill(sharded, 12)) == 0
    assert main(distill(alone, 12)) == 0

    assert_same_run(sharded, alone, atol)


def test_a_launch_that_asks_for_sharding_on_cpus_is_refused_rather_than_trained_in_copies(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = write_recipe(tmp_path / "recipe.yaml")
    words = ["distill", str(recipe), "--store", str(made / "store"), "--run", str(tmp_path / "run")]
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    for version, reason in (
        ("1", "asks for FSDP version 1, .* add --fsdp_version 2"),
        ("2", "accelerate has for GPUs"),
    ):
        monkeypatch.setenv("FSDP_VERSION", version)
        assert main(words) == 2
        assert re.search(reason, " ".join(capsys.readouterr().err.split()))
    assert not (tmp_path / "run").exists()


def steps_of(folder: Path) -> list[int]:
    return [line["step"] for line in metrics(folder)] if (folder / "metrics.jsonl").exists() else []


def assert_same_run(ours: Path, theirs: Path, atol: float = 2e-5) -> None:
    assert len(metrics(ours)) == len(metrics(theirs)) == 12
    for one, other in zip(metrics(ours), metrics(theirs), strict=True):
        assert one == pytest.approx(other, rel=1e-4)
    for name in ("student", "student_ema"):
        one, other = (load_file(folder / f"{name}.safetensors") for folder in (ours, theirs))
        assert one.keys() == other.keys()
        for key, tensor in other.items():
            torch.testing.assert_close(one[key], tensor, rtol=1e-3, atol=atol)
    student, average = (load_file(ours / f"{name}.safetensors") for name in ("student", "student_ema"))
    assert not torch.equal(student["norm.weight"], average["norm.weight"])
