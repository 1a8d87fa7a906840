"""What goes into a payload: this project's own code as it is installed here, wheels, unit and launcher.

lib/python3/        what is the same for every Python     install.sh              puts it all in place
lib/pythonX.Y/      what is made for one                   lichen-agent            starts it with any of them
lichen-agent.service                                       lichen-payload.json     what is in it
"""

import importlib.metadata
import importlib.util
import re
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from broker_coordinator.fleet.payload import Member, PayloadDescription, write_payload
from broker_coordinator.fleet.wheels import (
    ARCHITECTURES,
    Architecture,
    Wheel,
    fetch_wheels,
    requirements,
    unpacked,
)
from fl_protocol.errors import ConfigError, LichenError
from fl_protocol.signed import Sign

__all__ = ["Bundle", "BundlePlan", "make_bundle"]

_SHARED = "lib/python3"
_PYTHON = re.compile(r"3\.(1[1-9]|[2-9]\d)")
_OWN = ("edge_agent", "fl_io", "fl_protocol", "lichen", "models")
_OPERATOR_SIDE = ("models/build/", "models/zoo/", "lichen/command.py", "lichen/__main__.py")
_DEPLOYED = {"install.sh": True, "lichen-agent": True, "lichen-agent.service": False}
"""And whether each is a program."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BundlePlan:
    """What a payload is for. ``pythons`` as ``3.11``; ``constraint`` pins versions, in pip's words; with
    ``offline`` wheels come from that folder alone. ``preset`` is how hard xz tries: 0 is quick, 6 costs a
    minute for 130 MB, and a device eight MiB of memory to unpack."""

    arch: str
    pythons: Sequence[str]
    runtime: str = ""
    constraint: Path | None = None
    offline: Path | None = None
    preset: int = 6

    def __post_init__(self) -> None:
        if self.arch not in ARCHITECTURES:
            raise ConfigError(f"there is no arch {self.arch!r}: name one of {', '.join(ARCHITECTURES)}")
        wrong = [python for python in self.pythons if _PYTHON.fullmatch(python) is None]
        if wrong or not self.pythons or len(set(self.pythons)) < len(self.pythons):
            raise ConfigError(
                f"Python {', '.join(wrong) or 'of none or of one twice'} is none that this runs on",
                hint="--python 3.11 is that of Debian 12, 3.13 that of Debian 13",
            )

    @property
    def architecture(self) -> Architecture:
        """The processor."""
        return ARCHITECTURES[self.arch]


@dataclass(frozen=True, slots=True, kw_only=True)
class Bundle:
    """A payload that was made."""

    path: Path
    sha256: str
    bytes: int
    description: PayloadDescription


def make_bundle(plan: BundlePlan, out: Path, sign: Sign) -> Bundle:
    """Make a payload at ``out``, signed.

    Raises:
        LichenError: a wheel cannot be had, or a part of this project is not here.
        StorageError: the disk refuses.
    """
    architecture = plan.architecture
    runtime = plan.runtime or architecture.runtimes[0]
    wanted = requirements(runtime, architecture)
    with tempfile.TemporaryDirectory(prefix="lichen-bundle-") as scratch:
        by_python: dict[str, list[Wheel]] = {}
        for python in sorted(plan.pythons, key=_minor):
            folder = Path(scratch) / python
            folder.mkdir()
            by_python[python] = fetch_wheels(
                folder, wanted, architecture, python, constraint=plan.constraint, offline=plan.offline
            )
        members = [*_own_code(), *_deployed()]
        for folder_in_payload, wheel in _placed(by_python):
            members += unpacked(wheel, folder_in_payload)
        # A folder says which Pythons the payload is for, where no wheel is made for that one alone.
        for python in by_python:
            mark = f"lib/python{python}/for-this-python.txt"
            members.append(Member(path=mark, read=f"{python}\n".encode))
        description = PayloadDescription(
            lichen=importlib.metadata.version("lichen"),
            arch=plan.arch,
            pythons=tuple(by_python),
            runtime=runtime,
            packages=_versions(by_python),
            debian=architecture.debian,
        )
        digest = write_payload(out, members, description, sign, preset=plan.preset)
    return Bundle(path=out, sha256=digest, bytes=out.stat().st_size, description=description)


def _placed(by_python: "dict[str, list[Wheel]]") -> Iterator[tuple[str, Wheel]]:
    """Where each wheel goes: one copy where the very same serves all."""
    names = [{wheel.path.name for wheel in wheels} for wheels in by_python.values()]
    of_all = set.intersection(*names)
    for number, (python, wheels) in enumerate(by_python.items()):
        for wheel in wheels:
            if not (wheel.any_python and wheel.path.name in of_all):
                yield f"lib/python{python}", wheel
            elif number == 0:
                yield _SHARED, wheel


def _versions(by_python: "dict[str, list[Wheel]]") -> dict[str, str]:
    """Version of each package; those that differ by Python, one after the other."""
    found: dict[str, dict[str, None]] = {}
    for wheels in by_python.values():
        for wheel in wheels:
            found.setdefault(wheel.name, {})[wheel.version] = None
    return {name: " ".join(versions) for name, versions in sorted(found.items())}


def _own_code() -> Iterator[Member]:
    for package in _OWN:
        top = _package(package)
        for path in sorted(top.rglob("*")):
            relative = path.relative_to(top.parent).as_posix()
            if not path.is_file() or "__pycache__" in path.parts or path.name.startswith("."):
                continue
            if not relative.startswith(_OPERATOR_SIDE):
                yield Member(path=f"{_SHARED}/{relative}", read=path.read_bytes)


def _deployed() -> Iterator[Member]:
    for name, executable in _DEPLOYED.items():
        yield Member(path=name, read=_deploy_file(name).read_bytes, executable=executable)


def _deploy_file(name: str) -> Path:
    """In an installed wheel beside this module, in a checkout in its ``deploy`` folder."""
    here = Path(__file__).parent
    for folder in (here / "deploy", here.parents[1] / "deploy"):
        if (folder / name).is_file():
            return folder / name
    raise LichenError(f"deploy/{name} is not here", hint="install Lichen again, or use a checkout")


def _package(name: str) -> Path:
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        raise LichenError(f"Lichen's package {name} is not here")
    return Path(spec.origin).parent


def _minor(python: str) -> int:
    return int(python.partition(".")[2])
