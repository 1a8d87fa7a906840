"""Programs of this machine inside the root of another one, while its packages are configured.

A kernel that runs arm64 by emulation runs its own programs beside them. What dpkg and the packages' scripts
start over and over (unpacking, copying, searching) is found on the PATH as this machine's own, and costs a
tenth; whatever asks which processor it runs on, and whatever makes something for that processor, stays the
root's. Python's byte code is of no processor: it is made once, at the end. Nothing else of it is left when
the root is finished.
"""

import re
import shutil
import sys
from pathlib import Path

from fl_protocol.errors import LichenError
from hil.boards import errand

__all__ = ["FOLDER", "PROGRAMS", "compile_python", "remove_native_programs", "stage_native_programs"]

FOLDER = "/.native"
"""Where they are in the root; goes to the front of the PATH."""
PROGRAMS = (
    *("dpkg-deb", "tar", "xz"),
    *("basename", "cat", "chmod", "chown", "cmp", "cp", "cut", "dirname", "find", "grep", "head", "ln", "ls"),
    *("mkdir", "mktemp", "mv", "readlink", "rm", "rmdir", "sed", "sort", "stat", "tail", "touch", "tr"),
    *("uniq", "wc", "xargs"),
)
_LDD_S = 30.0
_COMPILE_S = 900.0
_PACKAGES = "usr/lib/python3/dist-packages"


def stage_native_programs(folder: Path) -> list[Path]:
    """Lay out in ``folder`` what is copied over a root: the programs in ``FOLDER``, and the libraries that
    they load where this machine has them. The paths below ``folder`` of all files.

    Raises:
        LichenError: a program cannot be asked what it loads, or does not answer.
    """
    libraries: set[str] = set()
    home = folder / FOLDER.lstrip("/")
    home.mkdir(parents=True)
    later = home / "py3compile"
    later.write_text("#!/bin/sh\nexit 0\n")
    later.chmod(0o755)
    for name in PROGRAMS:
        path = shutil.which(name, path="/usr/bin:/bin")
        if path is None:
            continue
        shutil.copy(path, home / name)
        libraries |= _loaded(path)
    for library in libraries:
        # /lib and its like are links in the root, or a merged /usr would be none.
        target = folder / re.sub(r"^/lib", "/usr/lib", library).lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(library, target)
    if (folder / "usr" / "lib64").exists():
        (folder / "lib64").symlink_to("usr/lib64")
    there = (path for path in folder.rglob("*") if path.is_symlink() or path.is_file())
    return [path.relative_to(folder) for path in there]


def remove_native_programs(root: Path, staged: list[Path]) -> None:
    """Take them out of the root again, and the folders that are empty then."""
    for path in staged:
        (root / path).unlink(missing_ok=True)
    for folder in sorted({path.parent for path in staged}, reverse=True):
        if (root / folder).is_dir() and not any((root / folder).iterdir()):
            (root / folder).rmdir()


def compile_python(root: Path) -> None:
    """Do what the packages' own ``py3compile`` would have done: by this Python where the root's is of the
    same kind, else by the root's.

    Raises:
        LichenError: a module cannot be compiled, or it takes too long.
    """
    (home,) = (root / "usr" / "lib").glob("python3.[0-9]*")
    tag = f"cpython-{home.name.removeprefix('python').replace('.', '')}"
    if tag == sys.implementation.cache_tag:
        words = [sys.executable, "-m", "compileall", "-q", "-s", str(root), "-p", "/", str(root / _PACKAGES)]
    else:
        words = ["chroot", str(root), f"/usr/bin/{home.name}", "-m", "compileall", "-q", f"/{_PACKAGES}"]
    done = errand.run(words, within_s=_COMPILE_S)
    if done.returncode:
        raise LichenError("Python's packages cannot be compiled", hint=(done.stdout + done.stderr)[-2000:])


def _loaded(program: str) -> set[str]:
    """The loader and the libraries of a program of this machine."""
    done = errand.run(["ldd", program], within_s=_LDD_S)
    if done.returncode:
        if "not a dynamic executable" in done.stderr + done.stdout:
            return set()
        raise LichenError(f"ldd {program} ended with {done.returncode}", hint=done.stderr.strip())
    words = [word for line in done.stdout.splitlines() for word in line.split()]
    return {word for word in words if word.startswith("/")}
