"""Another release of Lichen on this machine: an installation, or a commit of this repository."""

import os
import subprocess
import sys
import tarfile
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

from fl_protocol.errors import ConfigError

__all__ = ["OURS", "Release", "release_of"]

ROOT = Path(__file__).parents[2]
INSTALL_TIMEOUT_S = 600.0
ASK_TIMEOUT_S = 60.0
_EXTRAS = "coordinator,models"
_READY = ".ready"
_ASK = "import edge_agent, hil, lichen; from importlib.metadata import version; print(version('lichen'))"


@dataclass(frozen=True, slots=True, kw_only=True)
class Release:
    """An installation: what people call it, its interpreter, and the variables it is started with."""

    name: str
    python: Path
    environment: dict[str, str]

    def run(self, words: list[str], *, timeout_s: float) -> subprocess.CompletedProcess[str]:
        """Run its interpreter with ``words`` to the end; whatever the exit code."""
        return subprocess.run(
            [str(self.python), *words],
            env={**os.environ, **self.environment},
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )


OURS = Release(name="this release", python=Path(sys.executable), environment={})


def release_of(what: str, cache: Path) -> Release:
    """A release: ``what`` is a folder with ``bin/python`` (a venv) or an interpreter that has it installed,
    else a commit of this repository, which is installed into a folder of its own below ``cache``, once.

    Raises:
        ConfigError: there is none, or its installation fails.
    """
    path = Path(what).expanduser()
    for python in (path / "bin" / "python", path):
        if python.is_file() and os.access(python, os.X_OK):
            # The link itself, not what it points to: the venv is where the link is.
            return _asked(what, python.absolute())
    return _installed(what, cache)


def _asked(name: str, python: Path) -> Release:
    """A release that says who it is."""
    # A path of ours in the environment would put our code before its own.
    release = Release(name=name, python=python, environment={"PYTHONPATH": ""})
    answer = release.run(["-P", "-c", _ASK], timeout_s=ASK_TIMEOUT_S)
    if answer.returncode:
        raise ConfigError(
            f"no Lichen runs in {python}: {answer.stderr.strip().splitlines()[-1:]}",
            hint="name a venv in which it is installed with the extras coordinator and models, or a commit",
        )
    return Release(name=f"{answer.stdout.strip()} ({name})", python=python, environment=release.environment)


def _installed(commit: str, cache: Path) -> Release:
    full = _git("rev-parse", "--verify", "--quiet", f"{commit}^{{commit}}").decode().strip()
    folder = cache / full[:12]
    python = folder / "venv" / "bin" / "python"
    if not (folder / _READY).exists():
        tree = folder / "tree"
        tree.mkdir(parents=True, exist_ok=True)
        with tarfile.open(fileobj=BytesIO(_git("archive", full))) as archive:
            archive.extractall(tree, filter="data")
        _run([sys.executable, "-m", "venv", "--without-pip", str(folder / "venv")])
        _run([sys.executable, "-m", "pip", "--python", str(python), "install", "-q", f"{tree}[{_EXTRAS}]"])
        (folder / _READY).touch()
    return _asked(full[:7], python)


def _git(*words: str) -> bytes:
    try:
        return subprocess.run(
            ["git", "-C", str(ROOT), *words], capture_output=True, timeout=ASK_TIMEOUT_S, check=True
        ).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        raise ConfigError(
            f"git {' '.join(words)} does not work in {ROOT}: {error}",
            hint="name a commit of this repository, or the folder of an installation",
        ) from None


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, timeout=INSTALL_TIMEOUT_S, check=False)
    if done.returncode:
        raise ConfigError(f"{' '.join(command)} failed: {done.stderr.strip()[-1000:]}")
