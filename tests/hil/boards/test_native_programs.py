"""Programs of this machine for the root of another: they run from there, and leave nothing."""

import subprocess

from hil.boards.native_programs import FOLDER, remove_native_programs, stage_native_programs


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
