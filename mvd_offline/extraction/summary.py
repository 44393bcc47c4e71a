"""What an extraction did."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from mvd_offline.extraction.coding import ColumnCoding
from mvd_offline.extraction.rates import Rates


@dataclass
class ExtractSummary:
    """What an extraction did; `rows` counts by status."""

    shards: int = 0
    """Shards committed, those of each column counted."""
    rows: Counter[str] = field(default_factory=Counter)
    failures: list[tuple[str, str, str]] = field(default_factory=list)
    """(video_id, status, reason), once a view."""
    bytes_written: int = 0
    coding: dict[str, ColumnCoding] = field(default_factory=dict)
    """By column, what coding cost."""
    added_columns: list[str] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    """Of this process, by what it was busy with or waited for."""
    rates: Rates = field(default_factory=Rates)
    """Of this process."""
    elapsed_seconds: float = 0.0
    sealed: bool = False
    pending_shards: int = 0
    is_main: bool = True

    def take_in(self, others: Sequence[ExtractSummary]) -> None:
        """Add what the other processes did: counts are summed, seconds are those of this process."""
        for other in others:
            self.shards += other.shards
            self.rows += other.rows
            self.failures += other.failures
            self.bytes_written += other.bytes_written
            for name, coding in other.coding.items():
                self.coding[name].take_in(coding)

    def to_json(self) -> dict[str, Any]:
        rate = sum(self.rows.values()) / self.elapsed_seconds if self.elapsed_seconds else 0.0
        data = dataclasses.asdict(self) | {"rows": dict(self.rows), "clips_per_second": rate}
        data["rates"] = self.rates.to_json()
        data["coding"] = {name: coding.to_json() for name, coding in self.coding.items()}
        del data["is_main"]
        return data
