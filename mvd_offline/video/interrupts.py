"""Ctrl-C taken only where it can be taken without harm."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType


class HeldInterrupt:
    """While it is open, the first Ctrl-C waits for the next `check`; a second one is raised at once.

    Python raises KeyboardInterrupt between any two operations of the main thread, also in the middle of a queue's
    bookkeeping: a wake-up that another thread waits for is then lost, and that thread is waited for in vain.
    """

    def __init__(self) -> None:
        self._holding = self._pressed = False

    def __enter__(self) -> HeldInterrupt:
        # Signals concern the main thread alone; who handles Ctrl-C another way is left to it.
        if (
            threading.current_thread() is threading.main_thread()
            and signal.getsignal(signal.SIGINT) is signal.default_int_handler
        ):
            signal.signal(signal.SIGINT, self._press)
            self._holding = True
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._release()
        # An error ends the work anyway; a generator that is closed must not take the Ctrl-C with it.
        if kind is None or issubclass(kind, GeneratorExit):
            self.check()

    def check(self) -> None:
        """Raise the KeyboardInterrupt that waits, if one does."""
        if self._pressed:
            self._pressed = False
            raise KeyboardInterrupt

    def _press(self, number: int, frame: FrameType | None) -> None:
        self._pressed = True
        self._release()

    def _release(self) -> None:
        if self._holding:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            self._holding = False
