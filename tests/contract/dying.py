"""A process that dies in the middle of changing files, as a kill would end it: nothing is cleaned up."""

from __future__ import annotations

import os
import time
from collections.abc import Callable

CHANGES = ("rename", "unlink", "rmdir", "mkdir")


def dies_after(changes: int, action: Callable[[], object]) -> bool:
    """Run `action` in a fork that dies after that many changes of names (see CHANGES); False if it did fewer."""
    child = os.fork()
    if child == 0:
        left = changes

        def counted(call: Callable[..., object]) -> Callable[..., object]:
            def change(*arguments: object, **options: object) -> object:
                nonlocal left
                if left == 0:
                    os._exit(9)
                left -= 1
                return call(*arguments, **options)

            return change

        try:
            for name in CHANGES:
                setattr(os, name, counted(getattr(os, name)))
            action()
            os._exit(0)
        finally:
            os._exit(1)
    return _status(child) == 9


def _status(child: int) -> int:
    end = time.monotonic() + 60
    while time.monotonic() < end:
        found, status = os.waitpid(child, os.WNOHANG)
        if found:
            code = os.waitstatus_to_exitcode(status)
            assert code in (0, 9), f"the process failed with status {code} before it was to die"
            return code
        time.sleep(0.005)
    os.kill(child, 9)
    raise AssertionError("the process hangs")
