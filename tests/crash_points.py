"""The list of all crash points, from the code; ``python tests/crash_points.py`` writes it into the docs.

A point is ``crash_point("name")``, or ``crash_point(f"{purpose}.step")`` in a function whose callers give a
literal ``purpose`` (or pass on their own): each such call makes a point of every step.
"""

import ast
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "reliability.md"
MARK = "<!-- crash points: written by tests/crash_points.py -->\n"
END = "<!-- end of crash points -->\n"
PACKAGES = ("fl_io", "edge_agent", "broker_coordinator", "models/runtime")


@dataclass(frozen=True, slots=True)
class CrashPoint:
    """One point, and the files that a passage of it may begin in."""

    name: str
    files: tuple[str, ...]


def crash_points(root: Path = ROOT) -> tuple[CrashPoint, ...]:
    """Every crash point of the code below ``root``, by name."""
    trees = {
        path.relative_to(root).as_posix(): ast.parse(path.read_text())
        for package in PACKAGES
        for path in sorted((root / package).rglob("*.py"))
    }
    functions = [function for tree in trees.values() for function in _functions(tree)]
    steps, places = _steps(functions), _places(functions)
    files: dict[str, set[str]] = defaultdict(set)
    for file, tree in trees.items():
        for call in _calls(tree):
            if _name(call) == "crash_point":
                if isinstance(literal := _argument(call, 0, "name"), str):
                    files[literal].add(file)
                continue
            for purpose in {_argument(call, at, "purpose") for at in places[_name(call)]}:
                if isinstance(purpose, str) and purpose:
                    for step in steps[_name(call)]:
                        files[f"{purpose}.{step}"].add(file)
    return tuple(CrashPoint(name, tuple(sorted(files[name]))) for name in sorted(files))


def section(root: Path = ROOT) -> str:
    """The list as it stands in the docs: a row for all points that begin alike."""
    rows: dict[tuple[str, tuple[str, ...]], list[str]] = defaultdict(list)
    for point in crash_points(root):
        rows[point.name.rpartition(".")[0], point.files].append(point.name.rpartition(".")[2])
    lines = ["\n| points | where they are passed |\n| --- | --- |\n"]
    for (begin, files), ends in sorted(rows.items()):
        names = ", ".join(f"`{begin}.{end}`" for end in ends)
        lines.append(f"| {names} | {', '.join(f'`{file}`' for file in files)} |\n")
    return "".join([*lines, "\n"])


def page() -> str:
    """The whole page with the list renewed."""
    head, mark, rest = PAGE.read_text().partition(MARK)
    _, end, tail = rest.partition(END)
    return head + mark + section() + end + tail


def _steps(functions: Sequence[ast.FunctionDef]) -> Mapping[str, set[str]]:
    """Function name -> the steps that follow its ``purpose``, its own and those of whom it passes it to."""
    steps: dict[str, set[str]] = defaultdict(set)
    passed: dict[str, set[str]] = defaultdict(set)
    for function in functions:
        for call in _calls(function):
            if _name(call) == "crash_point":
                steps[function.name] |= set(_templates(call))
            elif any(isinstance(value, ast.Name) and value.id == "purpose" for value in _values(call)):
                passed[function.name].add(_name(call))
    for _ in functions:
        for name, others in passed.items():
            steps[name] = steps[name].union(*(steps[other] for other in others))
    return steps


def _places(functions: Sequence[ast.FunctionDef]) -> Mapping[str, set[int]]:
    """Function name -> where its callers put the ``purpose``, counted without ``self``."""
    places: dict[str, set[int]] = defaultdict(set)
    for function in functions:
        names = [argument.arg for argument in function.args.args if argument.arg not in ("self", "cls")]
        places[function.name].add(names.index("purpose") if "purpose" in names else len(names))
    return places


def _functions(tree: ast.AST) -> Iterator[ast.FunctionDef]:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and "purpose" in {
            argument.arg for argument in (*node.args.args, *node.args.kwonlyargs)
        }:
            yield node


def _calls(tree: ast.AST) -> Iterator[ast.Call]:
    return (node for node in ast.walk(tree) if isinstance(node, ast.Call))


def _name(call: ast.Call) -> str:
    return getattr(call.func, "attr", getattr(call.func, "id", ""))


def _values(call: ast.Call) -> list[ast.expr]:
    return [*call.args, *(keyword.value for keyword in call.keywords)]


def _argument(call: ast.Call, at: int, name: str) -> object:
    given = [keyword.value for keyword in call.keywords if keyword.arg == name] + call.args[at : at + 1]
    return given[0].value if given and isinstance(given[0], ast.Constant) else None


def _templates(call: ast.Call) -> Iterator[str]:
    """``x`` of ``crash_point(f"{purpose}.x")``."""
    for value in call.args:
        if isinstance(value, ast.JoinedStr) and isinstance(value.values[-1], ast.Constant):
            yield str(value.values[-1].value).removeprefix(".")


if __name__ == "__main__":
    PAGE.write_text(page())
