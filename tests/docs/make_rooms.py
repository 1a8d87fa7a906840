"""Writes the list of rooms in docs/architecture.md: every module, with the first sentence of its docstring.

Run ``python tests/docs/make_rooms.py`` after adding or renaming a module.
"""

import ast
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "architecture.md"
MARK = "<!-- rooms: written by tests/docs/make_rooms.py -->\n"
PACKAGES = (
    "fl_protocol",
    "fl_protocol/codec",
    "fl_io",
    "models/runtime",
    "models/build",
    "models/build/tflite",
    "models/zoo",
    "edge_agent",
    "edge_agent/adapters",
    "broker_coordinator",
    "broker_coordinator/storage",
    "broker_coordinator/aggregation",
    "broker_coordinator/publication",
    "broker_coordinator/books",
    "broker_coordinator/fleet",
    "broker_coordinator/flash",
    "hil",
    "hil/demo",
    "hil/bench",
    "hil/boards",
    "hil/chaos",
    "hil/emulation",
    "hil/load",
    "hil/releases",
    "hil/simulate",
    "lichen",
)


def rooms() -> str:
    """The list as it should stand."""
    parts = []
    for package in PACKAGES:
        job = sentence(ROOT / package / "__init__.py")
        parts.append(f"\n### `{package}/`\n\n{job}\n\n| file | job |\n| --- | --- |\n")
        parts += [
            f"| `{path.name}` | {sentence(path).replace('|', chr(92) + '|')} |\n"
            for path in sorted((ROOT / package).glob("*.py"))
            if path.name != "__init__.py"
        ]
    return "".join(parts)


def sentence(path: Path) -> str:
    """The first paragraph's first sentence of a module's docstring, on one line."""
    docstring = ast.get_docstring(ast.parse(path.read_text())) or ""
    paragraph = " ".join(docstring.split("\n\n")[0].split()).replace("``", "`")
    first, stop, _ = paragraph.partition(". ")
    return first + "." if stop else first


def page() -> str:
    """The whole page with the list renewed."""
    head, mark, _ = PAGE.read_text().partition(MARK)
    return head + mark + rooms()


if __name__ == "__main__":
    PAGE.write_text(page())
