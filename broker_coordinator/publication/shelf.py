"""The content of what is published: encoded once, kept under its hash, never made again."""

import hashlib
import os
from pathlib import Path

from fl_io.disk import DISK, Disk, make_folder, sweep_unfinished, write_file
from fl_protocol.blob import BlobRef, address_of
from fl_protocol.errors import StorageError

__all__ = ["BlobShelf"]


class BlobShelf:
    """The folder ``blobs/`` of a state folder: a file for each blob, named by its sha256 in hex.

    Raises:
        StorageError: from every method, if the disk refuses.
    """

    def __init__(self, folder: Path, *, disk: Disk = DISK) -> None:
        self._folder = folder
        self._disk = disk
        make_folder(folder, purpose="coordinator.shelf", disk=disk)
        try:
            sweep_unfinished(folder, disk=disk)
            self._by_address = {address_of(bytes.fromhex(path.name)): path for path in folder.glob("?" * 64)}
        except OSError as error:
            raise StorageError(f"{folder}: {error.strerror or error}") from error

    def put(self, content: bytes) -> BlobRef:
        """Keep a blob, durable on return; one that was damaged on the disk is whole again."""
        ref = BlobRef.of(content)
        path = self._folder / ref.sha256.hex()
        if self._content(path, 0, None) != content:
            write_file(path, content, purpose="coordinator.blob", disk=self._disk)
        self._by_address[ref.address] = path
        return ref

    def read(self, sha256: bytes) -> bytes | None:
        """A whole blob; None if it is not here, or damaged: then it is removed."""
        path = self._by_address.get(address_of(sha256))
        content = None if path is None else self._content(path, 0, None)
        if path is None or content is None or hashlib.sha256(content).digest() == sha256:
            return content
        self._disk.remove(path)
        del self._by_address[address_of(sha256)]
        return None

    def chunk(self, address: str, chunk_bytes: int, index: int) -> bytes | None:
        """Chunk ``index`` of a blob; None if there is no such blob or chunk."""
        path = self._by_address.get(address)
        if path is None:
            return None
        content = self._content(path, index * chunk_bytes, chunk_bytes)
        return content if content or index == 0 else None

    def drop_all_but(self, addresses: set[str]) -> None:
        """Remove every blob that is not at one of these addresses."""
        for address in self._by_address.keys() - addresses:
            self._disk.remove(self._by_address.pop(address))

    def _content(self, path: Path, start: int, length: int | None) -> bytes | None:
        try:
            with path.open("rb") as stream:
                # Devices ask for chunks by number: no disk can seek to where the largest would be.
                if start > os.fstat(stream.fileno()).st_size:
                    return b""
                stream.seek(start)
                return stream.read() if length is None else stream.read(length)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise StorageError(f"{path}: {error.strerror or error}") from error
