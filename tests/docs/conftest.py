"""The documents as a reader has them: text, links, and blocks of code."""

import re
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """One Markdown file."""

    path: Path
    text: str

    @property
    def name(self) -> str:
        """Its path from the project's folder."""
        return str(self.path.relative_to(ROOT))

    def blocks(self, language: str | None = None) -> list[str]:
        """The fenced blocks of a language (the empty one: those without), or all."""
        return [code for name, code in _FENCE.findall(self.text) if language in (None, name)]

    def block(self, language: str, holding: str) -> str:
        """The one block of a language that holds a text."""
        found = [code for code in self.blocks(language) if holding in code]
        assert len(found) == 1, f"{self.name} has {len(found)} {language} blocks with {holding!r}"
        return found[0]

    @property
    def prose(self) -> str:
        """What stands outside the blocks."""
        return _FENCE.sub("", self.text)

    def commands(self, *programs: str) -> list[str]:
        """Every command of these programs in the blocks, as typed."""
        lines = [line for code in self.blocks("") + self.blocks("bash") for line in code.splitlines()]
        return _of_programs(lines, programs)

    def mentions(self, *programs: str) -> list[str]:
        """Every command of these programs that the text names between backticks."""
        return _of_programs(re.findall(r"`([^`\n]+)`", self.prose), programs)


def _of_programs(lines: list[str], programs: tuple[str, ...]) -> list[str]:
    parts = [part.strip() for line in lines for part in re.split(r";|&&", line)]
    bare = [part.removeprefix("$ ").removeprefix(".venv/bin/") for part in parts]
    return [part for part in bare if part.partition(" ")[0] in programs and " " in part]


def read(path: Path) -> Document:
    return Document(path=path, text=path.read_text(encoding="utf-8"))


@pytest.fixture(scope="session")
def documents() -> list[Document]:
    """All of them."""
    return [
        read(ROOT / "README.md"),
        read(ROOT / "CONTRIBUTING.md"),
        *map(read, sorted(ROOT.glob("docs/*.md"))),
    ]


@pytest.fixture(scope="session")
def readme() -> Document:
    """The front page."""
    return read(ROOT / "README.md")
