"""What the processes of a launch find out together, so that all of them do the same: go on, stop, or fail.

All processes make each of these calls. One that left or failed alone would leave the others waiting for it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object

from mvd_offline.errors import MvdError

T = TypeVar("T")


def from_main(ask: Callable[[], T]) -> T:
    """What the main process finds, in all of them; so is an error that it raises."""
    answers = [_answer(ask) if PartialState().is_main_process else None]
    (found,) = _values(broadcast_object_list(answers))
    return found


def of_all(ask: Callable[[], T]) -> list[T]:
    """What each process finds, by its number, in all of them; so is an error that any of them raises."""
    return _values(gather_object([_answer(ask)]))


@dataclass(frozen=True)
class _Answer:
    value: Any = None
    error: MvdError | OSError | None = None


def _answer(ask: Callable[[], Any]) -> _Answer:
    try:
        return _Answer(ask())
    except (MvdError, OSError) as error:
        return _Answer(error=error)


def _values(answers: list[_Answer]) -> list[Any]:
    for answer in answers:
        if answer.error is not None:
            raise answer.error
    return [answer.value for answer in answers]
