"""Every package says what is public, and loads it only when it is asked for."""

import ast
import importlib
import pkgutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOTS = ("broker_coordinator", "edge_agent", "fl_io", "fl_protocol", "hil", "lichen", "models")
LAZY = (*ROOTS, "edge_agent.adapters", "fl_protocol.codec", "models.build", "models.zoo")
HEAVY = (
    "amqtt",
    "asyncio",
    "click",
    "cryptography",
    "numpy",
    "onnx",
    "onnxruntime",
    "paho",
    "rich",
    "sqlite3",
)


def packages() -> list[str]:
    """Each package of ours, by its full name."""
    found = []
    for root in ROOTS:
        package = importlib.import_module(root)
        below = pkgutil.walk_packages(package.__path__, f"{root}.")
        found += [root, *(module.name for module in below if module.ispkg)]
    return sorted(found)


def tree(package: ModuleType) -> ast.Module:
    return ast.parse(Path(str(package.__file__)).read_text(encoding="utf-8"))


def imported(package: ModuleType) -> dict[str, str]:
    """Names that a package takes from modules of ours, and from which; those for type checkers included."""
    body = list(tree(package).body)
    for block in [node for node in body if isinstance(node, ast.If)]:
        assert isinstance(block.test, ast.Name)
        assert block.test.id == "TYPE_CHECKING"
        body += block.body
    return {
        alias.name: str(node.module)
        for node in body
        if isinstance(node, ast.ImportFrom) and str(node.module).partition(".")[0] in ROOTS
        for alias in node.names
    }


def defined(package: ModuleType) -> set[str]:
    """Public names that a package makes itself."""
    names = set()
    for node in tree(package).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names |= {target.id for target in targets if isinstance(target, ast.Name)}
    return {name for name in names if not name.startswith("_")}


def in_order(name: str) -> tuple[int, str]:
    """CONSTANTS, then Classes, then functions, as ruff sorts them."""
    return (0 if name.isupper() else 1 if name[0].isupper() else 2, name)


@pytest.mark.parametrize("name", packages())
def test_a_package_lists_what_is_there_sorted(name):
    """``__all__`` is what the package imports for others and defines; a package without it has nothing."""
    package = importlib.import_module(name)
    there = imported(package)
    listed = getattr(package, "__all__", [])
    assert list(listed) == sorted(listed, key=in_order)
    assert set(listed) - {"__version__"} == there.keys() | defined(package)
    for entry, home in getattr(package, "_HOMES", {}).items():
        assert home in (there[entry], there[entry].removeprefix(f"{package.__name__}.")), entry
    assert getattr(package, "_HOMES", there).keys() == there.keys()


@pytest.mark.parametrize("name", packages())
def test_every_listed_name_is_there_and_is_no_module(name):
    """A function named as its module would give way to the module once that is imported: none is listed."""
    package = importlib.import_module(name)
    homes = imported(package)
    for entry in getattr(package, "__all__", []):
        value = getattr(package, entry)
        assert not isinstance(value, ModuleType), entry
        assert not (Path(str(package.__file__)).parent / f"{entry}.py").exists(), entry
        if entry in homes:
            home = importlib.import_module(homes[entry])
            assert value is getattr(home, entry)
            assert entry in home.__all__


@pytest.mark.parametrize("name", LAZY)
def test_an_unknown_name_is_an_attribute_error_that_names_the_package(name):
    """As of any module."""
    package = importlib.import_module(name)
    with pytest.raises(AttributeError, match=f"module '{name}' has no attribute 'nonsense'"):
        _ = package.nonsense
    with pytest.raises(ImportError):
        exec(f"from {name} import nonsense", {})


def test_importing_a_package_loads_nothing_heavy():
    """A device's supervisor imports these; so does an app that only wants one name."""
    code = f"""
import sys
for name in {LAZY}:
    __import__(name)
    heavy = sorted(module for module in sys.modules if module.partition(".")[0] in {HEAVY})
    assert not heavy, (name, heavy)
    dir(sys.modules[name])
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr
