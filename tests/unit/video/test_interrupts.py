"""Ctrl-C taken only where it can be taken without harm."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest

from mvd_offline.video.interrupts import HeldInterrupt


def press() -> None:
    signal.raise_signal(signal.SIGINT)


def test_ctrl_c_waits_for_the_next_check() -> None:
    reached = []

    def work() -> None:
        with HeldInterrupt() as interrupt:
            interrupt.check()
            press()
            reached.append("after the interrupt")
            interrupt.check()
            reached.append("after the check")

    with pytest.raises(KeyboardInterrupt):
        work()
    assert reached == ["after the interrupt"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_second_ctrl_c_does_not_wait() -> None:
    reached = []

    def work() -> None:
        with HeldInterrupt():
            press()
            reached.append("after the first")
            press()
            reached.append("after the second")

    with pytest.raises(KeyboardInterrupt):
        work()
    assert reached == ["after the first"]


def test_ctrl_c_that_nothing_checked_for_is_raised_at_the_end() -> None:
    reached = []

    def work() -> None:
        with HeldInterrupt():
            press()
            reached.append("the end")

    with pytest.raises(KeyboardInterrupt):
        work()
    assert reached == ["the end"]


def test_an_error_is_not_replaced_by_the_interrupt() -> None:
    def work() -> None:
        with HeldInterrupt():
            press()
            raise ValueError("first")

    with pytest.raises(ValueError, match="first"):
        work()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_generator_that_is_closed_hands_the_interrupt_on() -> None:
    def numbers() -> Iterator[int]:
        with HeldInterrupt():
            yield from range(3)

    generator = numbers()
    next(generator)
    press()
    with pytest.raises(KeyboardInterrupt):
        generator.close()


def test_another_handler_of_ctrl_c_is_left_in_place() -> None:
    pressed = []
    before = signal.signal(signal.SIGINT, lambda number, frame: pressed.append(number))
    try:
        with HeldInterrupt() as interrupt:
            press()
            interrupt.check()
    finally:
        signal.signal(signal.SIGINT, before)
    assert pressed == [signal.SIGINT]
