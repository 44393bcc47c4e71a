"""The pages as data: their blocks of code, why a block is not run, and the commands of ours that they show."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]

CODE = ("bash", "python", "yaml", "console")
"""Languages whose blocks a reader would run: each is run by a test, or says why not."""

BLOCK = re.compile(
    r"(?:^<!-- not run: (?P<reason>[^>]+?) -->\n)?^```(?P<language>\w+)(?P<info>[^\n]*)\n(?P<text>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
PROGRAM = re.compile(r"^(?:.*?\s)??(?:mvd-offline|\S*-m mvd_offline|mvd-shards)\s+(?P<words>.*)$")


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    page: str
    line: int
    language: str
    file: str
    """The name under which a reader saves it (`title="NAME"`), or nothing."""
    reason: str
    """Why no test runs it, or nothing."""
    text: str

    @property
    def place(self) -> str:
        return f"{self.page}:{self.line}"


def blocks(page: Path) -> list[Block]:
    """The fenced blocks of a page, in order."""
    text = page.read_text(encoding="utf-8")
    found = []
    for match in BLOCK.finditer(text):
        title = re.search(r'title="([^"]+)"', match["info"])
        line = text.count("\n", 0, match.start("language")) + 1
        name, reason = title[1] if title else "", match["reason"] or ""
        found.append(Block(page.name, line, match["language"], name, reason, match["text"]))
    return found


def code(page: Path) -> list[Block]:
    return [block for block in blocks(page) if block.language in CODE]


def without_blocks(page: Path) -> str:
    """The page's prose, its lines where they were."""
    return BLOCK.sub(lambda match: "\n" * match[0].count("\n"), page.read_text(encoding="utf-8"))


def lines_of(script: str) -> list[str]:
    """The lines of a shell script, continued ones joined."""
    return re.sub(r"\\\n\s*", "", script).splitlines()


def commands(script: str) -> Iterator[list[str]]:
    """The words that follow our program's name, of each of its calls in a shell script."""
    for line in lines_of(script):
        for part in re.split(r"\s(?:\|\||&&|\||&)\s|;\s", line.partition(" #")[0]):
            found = PROGRAM.match(part.strip())
            if found and not part.strip().startswith("#"):
                words = found["words"]
                yield ["shards", *shlex.split(words)] if "mvd-shards" in part else shlex.split(words)
