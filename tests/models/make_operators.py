"""Writes docs/operators.md from the tables of rules, lowerings, kernels and their cases.

Run ``python tests/models/make_operators.py`` after adding a rule, a lowering or a case.
"""

import importlib.util
from collections import Counter
from pathlib import Path

from models.build.lower import LOWERINGS
from models.build.mode import MODES
from models.build.rules import RULES
from models.build.tflite.convert import TRANSLATIONS
from models.runtime.numpy_ops import KERNELS

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "operators.md"
HEAD = """# Operators

Written by `tests/models/make_operators.py` from the tables of the builder and the cases of its tests.

What a forward graph may consist of (standard ONNX; `lichen models inspect NET.onnx` says it of a model of
yours). An operator with a *rule* has a gradient of its own, checked against central differences in double
precision. One that is *lowered* is written in operators that have rules, and checked against ONNX Runtime.
One that *trains otherwise* is lowered twice: with the statistics of the batch or with running ones, with
units dropped or without. One that is *forward only* carries no gradient, which truth values, shapes and ids
do not need. A few have both a rule and a lowering, which writes their attributes out first. "by parts" in the
TFLite column: what it is lowered to is there. Every model is checked again as a whole when it is built.

"""


def cases_of(name: str) -> Counter[str]:
    """How many cases each operator has in a test module's table."""
    spec = importlib.util.spec_from_file_location(name, Path(__file__).parent / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return Counter(case[0] for case in [*module.CASES, *getattr(module, "NEWER", [])])


def page() -> str:
    """The page as it should stand."""
    tests = ("test_rules", "test_lower", "test_numpy_ops", "test_mode")
    rules, lowerings, kernels, modes = map(cases_of, tests)
    rows = ["| operator | gradient | cases | TFLite |", "| --- | --- | --- | --- |"]
    tables = {"rule": RULES, "lowered": LOWERINGS | MODES, "trains otherwise": MODES}
    for op in sorted(RULES.keys() | LOWERINGS.keys() | KERNELS.keys() | MODES.keys()):
        ways = [word for word, table in tables.items() if op in table]
        lite = "yes" if op in TRANSLATIONS else "by parts" if op in tables["lowered"] else "no"
        count = rules[op] + lowerings[op] + kernels[op] + modes[op]
        rows.append(f"| {op} | {', '.join(ways) or 'forward only'} | {count} | {lite} |")
    return HEAD + "\n".join(rows) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page())
