"""What every decode process does first."""

from __future__ import annotations

import os
import signal
import threading
from multiprocessing import parent_process


def follow_the_parent() -> None:
    """Initialiser of a process pool: the process leaves Ctrl-C to its parent, and ends when its parent does."""
    # Ctrl-C reaches the whole process group; the parent alone decides what to do.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # A killed parent can stop nobody, least of all a process whose decoder hangs.
    threading.Thread(target=_end_with_the_parent, name="end-with-the-parent", daemon=True).start()


def _end_with_the_parent() -> None:
    parent = parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
