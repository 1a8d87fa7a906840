"""A root file system of another machine: Debian packages unpacked, and wheels beside them.

No script of theirs is run, so nothing needs emulation to be made: seconds instead of minutes.
"""

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from fl_protocol.errors import LichenError
from hil.boards import errand
from hil.boards.debian_root import program_path
from hil.emulation.machines import PYTHON, SUITE, Machine

__all__ = ["Root", "missing_tools"]

BUILD_TIMEOUT_S = 600.0
_PROJECT = Path(__file__).parents[2]
_COPIED = ("fl_protocol", "fl_io", "models", "hil", "tests", "pyproject.toml")
_CLUTTER = shutil.ignore_patterns("__pycache__", ".*")


def missing_tools(machines: Sequence[Machine]) -> list[str]:
    """What must be there before anything can be emulated, a sentence each."""
    programs = {"mmdebstrap": "mmdebstrap", **{machine.qemu: "qemu-user-static" for machine in machines}}
    packages = sorted({package for program, package in programs.items() if shutil.which(program) is None})
    missing = []
    if not sys.platform.startswith("linux") or os.geteuid() != 0:
        missing.append("Linux, and root's rights: the emulated programs run in a root of their own (chroot)")
    if packages:
        missing.append(f"programs of Debian's: apt-get install {' '.join(packages)}")
    return missing


class Root:
    """The root of one machine under ``folder``; made when it is not there, or was made of something else."""

    def __init__(self, machine: Machine, folder: Path) -> None:
        self._machine = machine
        self.path = folder.absolute() / machine.name

    def make(self) -> None:
        """Unpack Debian, install the wheels, and copy this project in, as it is now.

        Raises:
            LichenError: a program failed, with what it said.
        """
        mark, recipe = self.path / "recipe", hashlib.sha256(repr((SUITE, self._machine)).encode()).hexdigest()
        if not mark.exists() or mark.read_text() != recipe:
            shutil.rmtree(self.path, ignore_errors=True)
            self._unpack()
            for site in self._machine.sites:
                self._install(site.name, site.requirements, with_dependencies=site.with_dependencies)
            shutil.copy2(shutil.which(self._machine.qemu) or "", self.path / self._machine.qemu)
            mark.write_text(recipe)
        project = self.path / "opt" / "lichen"
        shutil.rmtree(project, ignore_errors=True)
        for name in _COPIED:
            source = _PROJECT / name
            if source.is_dir():
                shutil.copytree(source, project / name, ignore=_CLUTTER)
            else:
                shutil.copy2(source, project / name)

    def run(self, words: Sequence[str], *, site: str, timeout_s: float) -> "subprocess.CompletedProcess[str]":
        """Run the root's Python with ``words``: this project, and the packages of a site.

        Raises:
            LichenError: it ran longer than ``timeout_s``.
        """
        libraries = f"/usr/lib/{self._machine.triplet}"
        return _run(
            [
                *("chroot", str(self.path), f"/{self._machine.qemu}"),
                # Where Debian's alternatives would point, had its scripts been run.
                *("-E", f"LD_LIBRARY_PATH={libraries}/blas:{libraries}/lapack"),
                f"/usr/bin/python{PYTHON}",
                *words,
            ],
            timeout_s=timeout_s,
            environment={
                "PYTHONPATH": f"/opt/lichen:/opt/{site}",
                "PYTHONDONTWRITEBYTECODE": "1",
                "LC_ALL": "C.UTF-8",
                "HOME": "/root",
            },
        )

    def _unpack(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        words = ["mmdebstrap", "--quiet", "--variant=extract", f"--architectures={self._machine.debian}"]
        words += [f"--include={','.join(self._machine.packages)}", SUITE, str(self.path), *_mirror()]
        _checked(_run(words, timeout_s=BUILD_TIMEOUT_S), f"the {self._machine.debian} root cannot be made")

    def _install(self, site: str, requirements: Sequence[str], *, with_dependencies: bool) -> None:
        words = [sys.executable, "-m", "pip", "install", "--quiet", "--only-binary=:all:"]
        words += ["--target", str(self.path / "opt" / site), "--implementation", "cp"]
        words += ["--python-version", PYTHON, *(f"--platform={tag}" for tag in self._machine.platforms)]
        words += [*([] if with_dependencies else ["--no-deps"]), *requirements]
        _checked(_run(words, timeout_s=BUILD_TIMEOUT_S), f"the wheels of {site} cannot be installed")


def _mirror() -> list[str]:
    """Where this machine's own apt finds the suite; nothing where it does not know it."""
    words = [
        "apt-get",
        "indextargets",
        "--format",
        "$(REPO_URI)",
        "Created-By: Packages",
        f"Codename: {SUITE}",
    ]
    try:
        found = _run(words, timeout_s=BUILD_TIMEOUT_S).stdout.split()
    except OSError:
        return []
    return found[:1]


def _run(
    words: Sequence[str], *, timeout_s: float, environment: Mapping[str, str] | None = None
) -> "subprocess.CompletedProcess[str]":
    usual = os.environ if environment is None else environment
    return errand.run(words, within_s=timeout_s, environment={**usual, "PATH": program_path()})


def _checked(done: "subprocess.CompletedProcess[str]", what: str) -> None:
    if done.returncode:
        said = "\n".join(done.stderr.splitlines()[-12:])
        raise LichenError(f"{what}: {' '.join(done.args)} ended with {done.returncode}\n{said}")
