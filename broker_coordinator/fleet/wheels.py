"""Wheels of a device's processor and Python, fetched by pip on this machine: nothing of theirs is run.

A wheel is a zip that is unpacked where Python looks (PEP 427). What its tests are made of stays behind.
"""

import importlib.metadata
import re
import subprocess
import sys
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from types import MappingProxyType

from broker_coordinator.fleet.payload import Member
from fl_protocol.errors import ConfigError, LichenError

__all__ = ["ARCHITECTURES", "RUNTIMES", "Architecture", "Wheel", "fetch_wheels", "requirements", "unpacked"]

DOWNLOAD_TIMEOUT_S = 1200.0
RUNTIMES = ("onnx", "litert", "numpy")
_GLIBC_MINORS = range(36, 16, -1)
"""From that of Debian 12 down to that which every wheel of today may ask for."""
_LEFT_OUT = frozenset({"tests", "__pycache__"})
_DISTRIBUTION = "lichen"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_OF_EXTRA = re.compile(r"""\bextra\s*==\s*['"]([^'"]+)['"]""")


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """A processor, as ``uname -m`` says it, and which runtimes there are for it. ``debian`` are packages
    that the device's own system has to have, ``provided`` what they provide of our requirements."""

    name: str
    runtimes: tuple[str, ...]
    debian: tuple[str, ...] = ()
    provided: frozenset[str] = frozenset()

    @property
    def platforms(self) -> list[str]:
        """Tags of the wheels that run there."""
        old = {"aarch64": "manylinux2014", "x86_64": "manylinux2014"}.get(self.name)
        tags = [f"manylinux_2_{minor}_{self.name}" for minor in _GLIBC_MINORS]
        return [*tags, *([f"{old}_{self.name}"] if old else []), f"linux_{self.name}"]


ARCHITECTURES: Mapping[str, Architecture] = MappingProxyType(
    {
        "aarch64": Architecture(name="aarch64", runtimes=RUNTIMES),
        "x86_64": Architecture(name="x86_64", runtimes=RUNTIMES),
        # There are no wheels of numpy for it, nor of most others; Debian has them.
        "armv7l": Architecture(
            name="armv7l",
            runtimes=("numpy",),
            debian=("python3-numpy", "python3-msgpack", "python3-cryptography"),
            provided=frozenset({"numpy", "msgpack", "cryptography"}),
        ),
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Wheel:
    """A wheel file, named by PEP 427."""

    path: Path

    @property
    def name(self) -> str:
        """The distribution, as PyPI spells it."""
        return self.path.name.split("-")[0].replace("_", "-").lower()

    @property
    def version(self) -> str:
        """Its version."""
        return self.path.name.split("-")[1]

    @property
    def any_python(self) -> bool:
        """Whether one copy serves every Python 3 that it was fetched for."""
        *_, abi, _ = self.path.stem.split("-")
        return abi in ("none", "abi3")


def requirements(runtime: str, architecture: Architecture) -> list[str]:
    """What this project asks for on a device with such a runtime, less what Debian gives there.

    Raises:
        ConfigError: there is no such runtime for it.
        LichenError: this project's own metadata is not there: it is neither installed nor a checkout that is.
    """
    if runtime not in architecture.runtimes:
        raise ConfigError(
            f"there is no runtime {runtime!r} for {architecture.name}",
            hint=f"--runtime {' or '.join(architecture.runtimes)}",
        )
    try:
        lines = importlib.metadata.requires(_DISTRIBUTION) or []
    except importlib.metadata.PackageNotFoundError:
        raise LichenError("Lichen's metadata is not there", hint="pip install it, or `make setup`") from None
    found = []
    for line in lines:
        requirement, _, marker = (part.strip() for part in line.partition(";"))
        extra = _OF_EXTRA.search(marker)
        name = _NAME.match(requirement)
        if name is None or (extra is not None and extra[1] != runtime):
            continue
        if name[0].lower() not in architecture.provided:
            found.append(requirement)
    return found


def fetch_wheels(
    folder: Path,
    wanted: Sequence[str],
    architecture: Architecture,
    python: str,
    *,
    constraint: Path | None = None,
    offline: Path | None = None,
) -> list[Wheel]:
    """The wheels of these requirements and of all that they require, for a Python (``3.11``), in
    ``folder``. ``constraint`` is a file of versions, in pip's words; ``offline`` a folder to take all from.

    Raises:
        LichenError: pip cannot find one of them, or is not here.
    """
    words = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
    words += ["--only-binary=:all:", "--dest", str(folder), "--implementation", "cp"]
    words += ["--python-version", python, *(f"--platform={tag}" for tag in architecture.platforms)]
    words += ["--constraint", str(constraint)] if constraint else []
    words += ["--no-index", "--find-links", str(offline)] if offline else []
    # What Debian provides cannot be resolved; nothing that is left there requires more.
    words += ["--no-deps"] if architecture.provided else []
    try:
        done = subprocess.run(
            [*words, *wanted], capture_output=True, text=True, timeout=DOWNLOAD_TIMEOUT_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise LichenError(f"pip did not bring the wheels: {error}") from None
    if done.returncode:
        lines = done.stderr.splitlines()
        said = " ".join(line for line in lines if line.startswith("ERROR:")) or " ".join(lines)
        raise LichenError(
            f"no wheels for Python {python} on {architecture.name}: {said[:600]}",
            hint="try another --python or --runtime; without a network, name a folder of wheels by --wheels",
        )
    return [Wheel(path=path) for path in sorted(folder.glob("*.whl"))]


def unpacked(wheel: Wheel, folder: str) -> Iterator[Member]:
    """Its files, below ``folder`` of the payload; they are unpacked beside it, and read there.

    Raises:
        LichenError: it is not a wheel, or a file of it would land elsewhere.
    """
    beside = wheel.path.with_suffix("")
    try:
        with zipfile.ZipFile(wheel.path) as archive:
            names = [name for name in archive.namelist() if not name.endswith("/")]
            if astray := [name for name in names if name.startswith("/") or ".." in name.split("/")]:
                raise LichenError(f"{wheel.path.name} has a file that leads elsewhere: {astray[0][:200]!r}")
            archive.extractall(beside)
    except (OSError, zipfile.BadZipFile) as error:
        raise LichenError(f"{wheel.path.name} cannot be unpacked: {error}") from None
    for name in names:
        parts = PurePosixPath(name).parts
        if parts[0].endswith(".data"):
            # Programs and headers are of no use there; what is meant for the library goes there.
            if len(parts) < 3 or parts[1] not in ("purelib", "platlib"):
                continue
            parts = parts[2:]
        if not _LEFT_OUT.intersection(parts[:-1]):
            yield Member(path="/".join((folder, *parts)), read=(beside / name).read_bytes)
