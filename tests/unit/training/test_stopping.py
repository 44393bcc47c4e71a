"""Signals: remembered while a training runs, without effect on what comes after it."""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import os
import signal
import subprocess
import threading

import pytest

from mvd_offline.training.stopping import StopSignals, outlive_signals, stop_requested


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_remembered_and_announced(number: signal.Signals, capfd: pytest.CaptureFixture[str]) -> None:
    with StopSignals(speak=True) as signals:
        assert not stop_requested()
        os.kill(os.getpid(), number)
        os.kill(os.getpid(), signal.SIGTERM)

        assert stop_requested()
        assert signals.names == ", ".join(dict.fromkeys([number.name, "SIGTERM"]))
    assert capfd.readouterr().err.startswith(f"{number.name}: saving after this step")
    assert not stop_requested(), "the next training is asked anew"


def test_a_second_interrupt_interrupts_at_once_and_handlers_are_given_back() -> None:
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)

    def interrupted_twice() -> None:
        with StopSignals(speak=False):
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        interrupted_twice()
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def test_a_training_in_another_thread_leaves_signals_alone() -> None:
    before, seen = signal.getsignal(signal.SIGINT), []

    def train() -> None:
        with StopSignals(speak=False):
            seen.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=train)
    thread.start()
    thread.join()
    assert seen == [before]


def answer(pipe: multiprocessing.connection.Connection) -> None:
    """A loader process: answers until it is ended."""
    outlive_signals()
    while True:
        pipe.send(os.getpid())
        pipe.recv()


def test_a_loader_process_outlives_the_signals_of_others_and_leaves_at_its_trainers() -> None:
    ours, theirs = multiprocessing.Pipe()
    loader = multiprocessing.get_context("fork").Process(target=answer, args=(theirs,), daemon=True)
    loader.start()
    pid = ours.recv()

    for name in ("TERM", "INT", "TERM"):
        subprocess.run(["kill", f"-{name}", str(pid)], check=True)
        ours.send("still there?")
        assert ours.poll(60)
        assert ours.recv() == pid
    # Again until it is gone, as PyTorch and multiprocessing do: a system keeps only one SIGTERM for a process that has
    # not taken the last one yet, and then it is the sender of that one whom the process sees.
    for _ in range(60):
        loader.terminate()
        loader.join(1)

    assert loader.exitcode == 0
