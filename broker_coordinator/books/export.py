"""Export: a version's weights as a plain npz file, one array for each parameter."""

import io
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from broker_coordinator.aggregation.rules import FoldRules
from broker_coordinator.aggregation.version_state import VersionFiles
from broker_coordinator.storage.records import VersionRecord
from broker_coordinator.storage.store import Store
from fl_io.disk import DISK, Disk, write_file
from fl_protocol.codec import decode_model
from fl_protocol.errors import StorageError
from fl_protocol.layout import TensorLayout
from models.runtime import split_flat

__all__ = ["Exported", "export_version", "rules_of", "weights_npz"]

_EPOCH_OF_ZIP = (1980, 1, 1, 0, 0, 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Exported:
    """What was written: ``published`` weights or else the master's."""

    path: Path
    version: VersionRecord
    published: bool
    parameters: int


def export_version(
    store: Store,
    folder: Path,
    out: Path,
    *,
    number: int | None = None,
    published: bool = False,
    disk: Disk = DISK,
) -> Exported:
    """Write the weights of a version (the newest where none is named) of the state in ``folder``.

    The master weights are the exact ones; the published are what devices and ``Predictor`` use.

    Raises:
        StorageError: there is no such version, or it is not kept any more.
    """
    version = store.newest_version() if number is None else store.version(number)
    if version is None:
        raise StorageError(
            "there is no version yet" if number is None else f"there is no version {number}",
            hint="`lichen versions` lists those there are",
        )
    layout = rules_of(store, version).layout
    if published:
        weights = _published(folder, version, layout)
    else:
        weights = VersionFiles(folder, disk=disk).read(version).master
    write_file(out, weights_npz(weights, layout), purpose="export", disk=disk)
    return Exported(path=out, version=version, published=published, parameters=layout.size)


def rules_of(store: Store, version: VersionRecord) -> FoldRules:
    """The rules a version was made by; raises StorageError."""
    text = store.rules(version.rules)
    if text is None:
        raise StorageError(f"the fold rules of version {version.number} are not in the store")
    return FoldRules.from_json(text)


def weights_npz(weights: NDArray[np.float32], layout: TensorLayout) -> bytes:
    """An npz of float32[n] by parameter name, in wire order; equal weights give equal bytes."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_STORED) as archive:
        for name, array in split_flat(weights, layout).items():
            member = io.BytesIO()
            np.lib.format.write_array(member, np.ascontiguousarray(array), allow_pickle=False)
            archive.writestr(zipfile.ZipInfo(f"{name}.npy", _EPOCH_OF_ZIP), member.getvalue())
    return content.getvalue()


def _published(folder: Path, version: VersionRecord, layout: TensorLayout) -> NDArray[np.float32]:
    path = folder / "blobs" / version.published_sha256.hex()
    try:
        content = path.read_bytes()
    except OSError as error:
        raise StorageError(
            f"the published weights of version {version.number} are not kept: {path}: {error.strerror}",
            hint="published blobs live for a few versions; the master weights are kept longer",
        ) from None
    return decode_model(content, layout)
