"""Sizes and durations for a reader."""

from __future__ import annotations


def device_hours(seconds: float) -> str:
    """Time of one device: in hours, however many, and below one hour as a duration.

    >>> device_hours(4_586_400)
    '1,274 device-hours'
    """
    hours = seconds / 3600
    return human_duration(seconds) if hours < 1 else f"{hours:,.{0 if hours >= 99.95 else 1}f} device-hours"


def human_bytes(count: float) -> str:
    """A size in decimal units, three significant digits.

    >>> human_bytes(2_408_448)
    '2.41 MB'
    """
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if abs(count) < 999.5:
            return _three_digits(count, unit, whole=unit == "B")
        count /= 1000
    return _three_digits(count, "PB", whole=False)


def human_duration(seconds: float) -> str:
    """A duration: milliseconds below a second, then seconds, minutes, hours, days.

    >>> human_duration(7384)
    '2 h 03 min'
    """
    if seconds < 0.9995:
        return f"{seconds * 1000:.3g} ms"
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    if hours < 48:
        return f"{hours} h {minutes:02d} min"
    days, hours = divmod(round(seconds / 3600), 24)
    return f"{days} d {hours:02d} h"


def _three_digits(value: float, unit: str, *, whole: bool) -> str:
    if whole:
        return f"{value:.0f} {unit}"
    decimals = 2 if abs(value) < 9.995 else 1 if abs(value) < 99.95 else 0
    return f"{value:.{decimals}f} {unit}"
