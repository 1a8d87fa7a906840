"""A machine of its own for services: Debian under its systemd as process 1, in a container of systemd-nspawn.

Its root is made by mmdebstrap once and kept in a cache; each machine has a copy. It shares a network
namespace with nobody but whom a test starts there.
"""

import contextlib
import hashlib
import itertools
import os
import platform
import shutil
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable, Sequence
from pathlib import Path

from hil.boards.card_image import cache_folder
from hil.boards.debian_root import SUITE, mirror, run
from hil.processes import ManagedProcess, children

__all__ = ["BootedMachine", "debian_root", "guide_commands", "wheels_for", "why_not"]

ROOT = Path(__file__).parents[2]
PACKAGES = ("ca-certificates", "dbus", "iproute2", "mosquitto", "procps", "python3-venv", "systemd-sysv")
PYTHON = "3.11"
"""The suite's own."""
PATIENCE_S = 90.0
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_numbers = itertools.count()


def why_not() -> str:
    """What keeps such a machine from being made here; empty if nothing does."""
    if not sys.platform.startswith("linux") or os.geteuid() != 0:
        return "it takes Linux, and root's rights"
    programs = ("ip", "mmdebstrap", "nsenter", "systemd-nspawn")
    missing = [name for name in programs if shutil.which(name) is None]
    if missing:
        return f"{', '.join(missing)} not installed"
    if not os.access("/sys/fs/cgroup", os.W_OK):
        return "control groups cannot be made"
    return ""


def debian_root(packages: Sequence[str] = PACKAGES, suite: str = SUITE) -> Path:
    """A configured root with these packages, from the cache; the first time it takes minutes and a mirror."""
    recipe = hashlib.sha256(repr((suite, sorted(packages), platform.machine())).encode()).hexdigest()[:16]
    root = cache_folder() / f"root-{recipe}"
    if not root.exists():
        root.parent.mkdir(parents=True, exist_ok=True)
        work = root.with_name(f".new-{recipe}-{os.getpid()}")
        words = ["unshare", "--mount", "--propagation=private", "mmdebstrap", "--quiet", "--mode=root"]
        words += ["--variant=minbase", "--skip=check/qemu", f"--include={','.join(packages)}"]
        words += [f"--dpkgopt=path-exclude=/usr/share/{name}/*" for name in ("doc", "man", "locale")]
        try:
            run([*words, suite, str(work), *mirror()], what="a root cannot be made")
            try:
                os.replace(work, root)
            except OSError:
                if not root.exists():  # else another has made the same meanwhile
                    raise
        finally:
            shutil.rmtree(work, ignore_errors=True)
    return root


def wheels_for(python: str, folder: Path) -> Path:
    """What the coordinator's installation takes from a package index, for another Python of this machine."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    extras = project["project"]["optional-dependencies"]
    wanted = [*project["build-system"]["requires"], *project["project"]["dependencies"]]
    wanted += [*extras["coordinator"], *extras["onnx"]]
    words = [sys.executable, "-m", "pip", "download", "--quiet", "--only-binary=:all:"]
    words += ["--python-version", python, "--dest", str(folder)]
    run([*words, *wanted], what="packages cannot be fetched")
    return folder


def guide_commands(heading: str) -> list[str]:
    """The commands of a section of the operator's guide: its first block."""
    guide = (ROOT / "docs" / "guide-operating.md").read_text()
    return guide.split(f"## {heading}\n", 1)[1].split("```\n", 2)[1].splitlines()


class BootedMachine:
    """One such machine; ``path`` is its root as this machine sees it."""

    def __init__(self, folder: Path, wheels: Path) -> None:
        self.path = folder / "root"
        run(["cp", "--archive", "--reflink=auto", str(debian_root()), str(self.path)], what="no room")
        # A machine that is only just installed has none; nor may two have one.
        (self.path / "etc/machine-id").write_text("")
        for name in ("src/lichen", "src/wheels"):
            (self.path / "usr" / name).mkdir(parents=True, exist_ok=True)
        self.namespace = f"lichen-{os.getpid()}-{next(_numbers)}"
        words = ["systemd-nspawn", "--quiet", f"--directory={self.path}", "--boot", "--register=no"]
        words += ["--keep-unit", f"--machine={self.namespace}", "--console=pipe"]
        words += [f"--network-namespace-path=/run/netns/{self.namespace}"]
        words += [f"--bind-ro={ROOT}:/usr/src/lichen", f"--bind-ro={wheels}:/usr/src/wheels"]
        self.process = ManagedProcess("machine", words, folder / "console.log", folder=folder)
        self._made = contextlib.ExitStack()

    def __enter__(self) -> "BootedMachine":
        with contextlib.ExitStack() as stack:
            run(["ip", "netns", "add", self.namespace], what="no network namespace")
            stack.callback(self._remove_namespace)
            run(["ip", "-n", self.namespace, "link", "set", "lo", "up"], what="no loopback")
            stack.callback(self.cut_power)
            self.boot()
            self._made = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._made.close()

    def boot(self) -> "BootedMachine":
        """Switch it on, and wait until all that is to start has started."""
        self.process.start()
        self.until(lambda: self.said("systemctl", "is-system-running").strip() in ("running", "degraded"))
        return self

    def cut_power(self) -> None:
        """Everything in it is gone at once."""
        family = children(self.process.pid) if self.process.running else []
        self.process.kill_family()
        self.until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in family))

    def words(self, *words: str) -> list[str]:
        """A command line of this machine that runs ``words`` inside, as root."""
        (first,) = children(self.process.pid) or (0,)
        entering = ["nsenter", f"--target={first}", "--mount", "--uts", "--ipc", "--pid", "--net", "--cgroup"]
        entering += ["--root", "--wd=/"]
        return [*entering, "env", "-i", f"PATH={_PATH}", "HOME=/root", "LANG=C.UTF-8", *words]

    def beside(self, *words: str) -> list[str]:
        """One that runs ``words`` outside, on its network."""
        return ["nsenter", f"--net=/run/netns/{self.namespace}", *words]

    def said(self, *words: str, timeout_s: float = PATIENCE_S) -> str:
        """What a command inside prints, however it ends."""
        done = subprocess.run(
            self.words(*words), capture_output=True, text=True, timeout=timeout_s, check=False
        )
        return done.stdout

    def do(self, *words: str, timeout_s: float = PATIENCE_S) -> str:
        """Run a command inside, which must go well; what it printed."""
        return run(self.words(*words), what=" ".join(words), timeout_s=timeout_s)

    def shell(self, lines: Sequence[str]) -> str:
        """Type lines in the checkout, each of which must go well."""
        settings = ["export PIP_NO_INDEX=1 PIP_FIND_LINKS=/usr/src/wheels PIP_CACHE_DIR=/tmp/pip"]
        return self.do("sh", "-ec", "\n".join(["cd /usr/src/lichen", *settings, *lines]), timeout_s=600)

    def shows(self, unit: str, *names: str) -> list[str]:
        """Properties of a unit, as systemd has them."""
        wanted = [word for name in names for word in ("--property", name)]
        found = self.do("systemctl", "show", unit, *wanted).splitlines()
        values = dict(line.partition("=")[::2] for line in found)
        return [values[name] for name in names]

    def until(self, holds: Callable[[], object], patience_s: float = PATIENCE_S) -> None:
        """Wait until it holds; polls, as systemd sends us no event."""
        ends = time.monotonic() + patience_s
        while not holds():
            assert time.monotonic() < ends, self.process.last_words(40)
            time.sleep(0.1)

    def _remove_namespace(self) -> None:
        run(["ip", "netns", "delete", self.namespace], what="the network namespace stays")
