"""Errors of the jobs and of the video room; the base class lives with the store's errors."""

from __future__ import annotations

from pathlib import Path

from mvd_offline.shards.errors import MvdError, nearest

__all__ = [
    "CheckpointError",
    "MvdError",
    "NonFiniteLossError",
    "PixelMismatchError",
    "RecipeError",
    "TrainingStopped",
    "UsageError",
    "VideoError",
    "nearest",
]


class UsageError(MvdError, ValueError):
    """A command was asked for something that cannot be: exit status 2."""


class RecipeError(UsageError):
    """A recipe has an unknown key or a value that is not allowed; the message gives the dotted path."""


class CheckpointError(MvdError, ValueError):
    """A checkpoint cannot be used: unknown layout, missing, unexpected or misshapen tensors (all listed)."""


class NonFiniteLossError(MvdError, ArithmeticError):
    """A loss became NaN or infinite; the message names the step and the rows of that batch."""


class TrainingStopped(MvdError):
    """A signal asked a training to stop, which saved and left: exit status 75, and the same command goes on.

    Attributes:
        step: steps that are done and saved.
    """

    def __init__(self, run: Path, step: int, steps: int, signals: str) -> None:
        self.run, self.step = run, step
        super().__init__(
            f"{stopped_by(signals)} after step {step} of {steps}, which {run} holds; run the same command again to go "
            "on"
        )


def stopped_by(signals: str) -> str:
    """Why a process of a launch stops: the signals that it has caught itself, if any."""
    return f"stopped by {signals}" if signals else "stopped, as another process of this launch was asked to"


class PixelMismatchError(MvdError):
    """A rendered view differs from the pixels that the teachers saw."""


class VideoError(MvdError, OSError):
    """A video cannot be read.

    Attributes:
        path: the file.
        frame: index of the frame that failed, or None when the file as a whole did.
        decoder: `"decord 0.6.0"`, `"pyav 18.1.0"`, or both names when both were tried.
        status: the ledger's word for it: `unreadable`, `too_short`, `timeout`, `missing`.
    """

    def __init__(
        self, path: str, reason: str, *, frame: int | None = None, decoder: str = "", status: str = "unreadable"
    ) -> None:
        self.path, self.reason, self.frame, self.decoder, self.status = path, reason, frame, decoder, status
        where = path if frame is None else f"{path}, frame {frame}"
        tried = f" (tried {decoder})" if decoder else ""
        super().__init__(f"{where}: {reason}{tried}")

    def __reduce__(self) -> tuple[object, ...]:
        # Exceptions cross process boundaries; keyword-only arguments need help to do so.
        return (_rebuild_video_error, (self.path, self.reason, self.frame, self.decoder, self.status))


def _rebuild_video_error(path: str, reason: str, frame: int | None, decoder: str, status: str) -> VideoError:
    return VideoError(path, reason, frame=frame, decoder=decoder, status=status)
