"""Stopping well: a signal asks the training to save and to leave, and is not lost when work waits for something.

SIGTERM is how Slurm announces a preemption, and how `accelerate launch` passes it on to its processes: it gives them 30
seconds. (With a longer step, start the processes by `srun` instead, which leaves them the time that Slurm grants.)
"""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType, TracebackType

_caught: list[int] = []
"""Signals that the training of this process has caught, in order; empty where none is under way."""


class StopRequested(Exception):
    """`Task.order` raises it where it waits for data and a signal asks to stop; what was read already is trained on."""


def stop_requested() -> bool:
    """Whether a signal has asked the training of this process to save and leave."""
    return bool(_caught)


class StopSignals:
    """While open, SIGTERM and SIGINT are remembered instead of ending the process; a second SIGINT interrupts at once.

    Only a program's main thread may catch signals; in another one they keep their usual effect.
    """

    def __init__(self, *, speak: bool) -> None:
        """`speak`: whether this process says on standard error that it has understood."""
        self._speak, self._before = speak, dict[int, object]()

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._catch) for number in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
        _caught.clear()

    @property
    def names(self) -> str:
        """What was caught in this process, such as `SIGTERM`."""
        return ", ".join(dict.fromkeys(signal.Signals(number).name for number in _caught))

    def _catch(self, number: int, frame: FrameType | None) -> None:
        again = signal.SIGINT in _caught
        _caught.append(number)
        if number == signal.SIGINT and again:
            raise KeyboardInterrupt
        if self._speak:
            # Not print: the signal may have come in the middle of one.
            os.write(2, f"{signal.Signals(number).name}: saving after this step; Ctrl-C stops at once\n".encode())


def outlive_signals() -> None:
    """Let a loader process leave stopping to its trainer, which needs it for the rest of the step.

    A terminal sends SIGINT, and Slurm and launchers SIGTERM, to all processes of a job; here only the trainer's own
    SIGTERM counts, by which it ends a loader process that hangs.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):  # not on macOS
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_leave_when_told_by, args=(os.getppid(),), daemon=True).start()


def _leave_when_told_by(process: int) -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != process:
        pass
    os._exit(0)
