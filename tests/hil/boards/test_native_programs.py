"""Programs of this machine for the root of another: they run from there, and leave nothing."""

import marshal
import subprocess
import sys

import pytest

from fl_protocol.errors import LichenError
from hil.boards.native_programs import FOLDER, compile_python, remove_native_programs, stage_native_programs


def test_a_staged_program_runs_with_the_libraries_beside_it(tmp_path):
    """The loader that was laid out starts tar with nothing but what was laid out; /lib is no folder there,
    which would stand in the way of the root's own link."""
    staged = stage_native_programs(tmp_path)
    assert not (tmp_path / "lib").exists()
    loader = next(tmp_path / path for path in staged if path.name.startswith("ld-"))
    libraries = ":".join({str((tmp_path / path).parent) for path in staged if ".so" in path.name})
    words = [
        str(loader),
        "--library-path",
        libraries,
        str(tmp_path / FOLDER.lstrip("/") / "tar"),
        "--version",
    ]
    done = subprocess.run(words, capture_output=True, text=True, timeout=30, check=False)
    assert "tar" in done.stdout, done.stderr


def test_nothing_is_left_but_what_was_there(tmp_path):
    """Folders that hold something else stay, all others go."""
    root = tmp_path / "root"
    staged = stage_native_programs(root)
    (root / "usr" / "lib").mkdir(parents=True, exist_ok=True)
    (root / "usr" / "lib" / "os-release").write_text("")
    remove_native_programs(root, staged)
    assert [path for path in root.rglob("*") if path.is_file()] == [root / "usr" / "lib" / "os-release"]
    assert not (root / FOLDER.lstrip("/")).exists()


@pytest.fixture
def python_root(tmp_path):
    """A root with this Python's folder, and a package of one module."""
    lib = tmp_path / "usr" / "lib"
    (lib / f"python3.{sys.version_info[1]}").mkdir(parents=True)
    package = lib / "python3" / "dist-packages"
    package.mkdir(parents=True)
    (package / "one.py").write_text("def one():\n    return 1\n")
    return tmp_path


def test_packages_are_compiled_as_if_the_root_were_the_machine(python_root):
    """The byte code is where Python looks for it, and names the path that the device knows."""
    compile_python(python_root)
    (compiled,) = python_root.rglob("*.pyc")
    assert compiled.name == f"one.{sys.implementation.cache_tag}.pyc"
    code = marshal.loads(compiled.read_bytes()[16:])
    assert code.co_filename == "/usr/lib/python3/dist-packages/one.py"


def test_a_module_that_is_no_python_is_an_error(python_root):
    """A package that would be compiled again at every start is not left so in silence."""
    (python_root / "usr/lib/python3/dist-packages/two.py").write_text("def def")
    with pytest.raises(LichenError, match="cannot be compiled") as caught:
        compile_python(python_root)
    assert "two.py" in caught.value.hint
