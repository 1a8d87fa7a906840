"""One file out of a package: fetched with pip, taken out of the wheel, never installed."""

import hashlib
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from fl_protocol.errors import ConfigError, TransportError

__all__ = ["PackageFile"]

_TIMEOUT_S = 600
# Wheels of one platform, named, are the same file on every machine; what is taken out of them runs nowhere.
_ONE_PLATFORM = (
    "--only-binary=:all:",
    "--implementation=cp",
    "--python-version=3.11",
    "--platform=manylinux2014_x86_64",
    "--platform=manylinux_2_28_x86_64",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class PackageFile:
    """The file ``member`` of the wheel of ``package`` ``version``: ``size`` bytes, hashed ``sha256``."""

    package: str
    version: str
    member: str
    size: int
    sha256: str

    def fetched(self) -> bytes:
        """Ask pip for the wheel, from wherever pip is set up to take packages, and read the file.

        Raises:
            TransportError: pip is not there or cannot get it.
            ConfigError: it is not the file that it was.
        """
        with tempfile.TemporaryDirectory(prefix="lichen-fetch-") as folder:
            words = ["download", "--quiet", "--no-deps", "--no-input", "--disable-pip-version-check"]
            wanted = [*_ONE_PLATFORM, f"--dest={folder}", f"{self.package}=={self.version}"]
            try:
                done = subprocess.run(
                    [sys.executable, "-m", "pip", *words, *wanted],
                    capture_output=True,
                    text=True,
                    check=False,
                    timeout=_TIMEOUT_S,
                )
            except subprocess.TimeoutExpired:
                raise TransportError(
                    f"pip did not get {self.package} {self.version} within {_TIMEOUT_S} s"
                ) from None
            wheels = sorted(Path(folder).glob("*.whl"))
            if done.returncode or not wheels:
                lines = [
                    line for line in done.stderr.splitlines() if line.startswith("ERROR") or "pip" in line
                ]
                raise TransportError(
                    f"pip cannot get {self.package} {self.version}: {(lines or ['it does not say why'])[-1]}",
                    hint=f"get the wheel of {self.package} elsewhere and name it with --wheel FILE",
                )
            return self.read(wheels[0])

    def read(self, wheel: Path) -> bytes:
        """The file as it is in a wheel on this disk.

        Raises:
            ConfigError: no wheel, or the file in it is another.
        """
        try:
            with zipfile.ZipFile(wheel) as archive, archive.open(self.member) as member:
                content = member.read(self.size + 1)  # an archive may unpack to any number of bytes
        except KeyError:
            raise ConfigError(
                f"{wheel} holds no {self.member}", hint=f"it takes {self.package} {self.version}"
            ) from None
        except (OSError, zipfile.BadZipFile, EOFError) as error:
            raise ConfigError(f"cannot read {wheel}: {error}", hint="a wheel is a ZIP archive") from None
        if len(content) != self.size or hashlib.sha256(content).hexdigest() != self.sha256:
            raise ConfigError(
                f"{self.member} in {wheel.name} is not the file that this release knows",
                hint=f"it takes that of {self.package} {self.version}",
            )
        return content
