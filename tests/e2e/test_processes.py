"""A process of a launch ends, whatever the others do."""

from __future__ import annotations

import sys
import time
from contextlib import ExitStack
from pathlib import Path

from small_runs import side_by_side, started

# The first waits for the second at another operation than the second began before it failed: none of them can end.
FAILING = """
import sys
import torch
from torch import distributed
from mvd_offline import processes

processes.LEAVING_SECONDS = 1.0
accelerator = processes.join_launch()
accelerator.wait_for_everyone()
if accelerator.is_main_process:
    distributed.barrier()
begun = distributed.all_reduce(torch.ones(5), async_op=True)
sys.exit("failed in the middle of a step")
"""


def test_a_process_that_failed_in_the_middle_of_a_step_waits_for_the_others_no_longer_than_said(tmp_path: Path) -> None:
    script, logs = tmp_path / "failing.py", [tmp_path / "log0", tmp_path / "log1"]
    script.write_text(FAILING)
    with ExitStack() as stack:
        commands = side_by_side(*[[sys.executable, str(script)]] * 2)
        both = [stack.enter_context(started(words, log)) for words, log in zip(commands, logs, strict=True)]
        end = time.monotonic() + 60
        statuses = [process.wait(max(0.0, end - time.monotonic())) for process in both]

    said = [log.read_text() for log in logs]
    assert statuses == [1, 1], said
    assert "failed in the middle of a step" in said[1]
    assert "Timeout" in said[1]
    assert "RuntimeError" in said[0]
