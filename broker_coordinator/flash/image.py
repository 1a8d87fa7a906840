"""The image of a card: raw, or compressed by xz or gzip, read forward once and looked into before that."""

import contextlib
import gzip
import lzma
import os
import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, cast

from fl_protocol.errors import ConfigError, StorageError

__all__ = ["BLOCK", "CardImage"]

BLOCK = 4 << 20
"""Bytes that are read, written and hashed at a time."""


class CardImage:
    """An image file. ``read`` looks anywhere; of a compressed one it unpacks, into a temporary file, no
    more than it has to. ``blocks`` gives all of it, and ``fraction`` says how much of the file is read.

    Raises:
        ConfigError: there is no such file.
        StorageError: it cannot be read, or the compressed data are damaged.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._file = path.open("rb")
            self._length = os.fstat(self._file.fileno()).st_size
            magic = self._file.read(6)
            self._file.seek(0)
        except OSError as error:
            raise ConfigError(f"cannot open the image {path}: {error.strerror}") from None
        self._stream: BinaryIO = self._file
        if magic == b"\xfd7zXZ\0":
            self._stream = cast(BinaryIO, lzma.LZMAFile(self._file))  # noqa: SIM115
        elif magic[:2] == b"\x1f\x8b":
            self._stream = cast(BinaryIO, gzip.GzipFile(fileobj=self._file))
        self._unpacked = tempfile.TemporaryFile() if self.compressed else None  # noqa: SIM115
        self._unpacked_bytes = 0

    def __enter__(self) -> "CardImage":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def compressed(self) -> bool:
        """Whether it has to be unpacked."""
        return self._stream is not self._file

    @property
    def fraction(self) -> float:
        """How much of the file has been read, 0 to 1."""
        return min(1.0, self._file.tell() / self._length) if self._length else 1.0

    def read(self, offset: int, length: int) -> bytes:
        """Bytes of the unpacked image, fewer than asked for where it ends. Before ``blocks`` only."""
        with self._faults():
            if self._unpacked is None:
                return os.pread(self._file.fileno(), length, offset)
            while self._unpacked_bytes < offset + length:
                block = self._stream.read(min(BLOCK, offset + length - self._unpacked_bytes))
                if not block:
                    break
                self._unpacked.seek(self._unpacked_bytes)
                self._unpacked.write(block)
                self._unpacked_bytes += len(block)
            self._unpacked.seek(offset)
            return self._unpacked.read(length)

    def blocks(self) -> Iterator[bytes]:
        """The whole unpacked image, once, in pieces of ``BLOCK`` bytes; the last may be shorter."""
        offset = 0
        while True:
            with self._faults():
                block = self._piece(offset)
            if block:
                yield block
            if len(block) < BLOCK:
                return
            offset += len(block)

    def close(self) -> None:
        """Close the file."""
        self._stream.close()
        self._file.close()
        if self._unpacked is not None:
            self._unpacked.close()

    def _piece(self, offset: int) -> bytes:
        piece = bytearray()
        if self._unpacked is not None and offset < self._unpacked_bytes:
            self._unpacked.seek(offset)
            piece += self._unpacked.read(BLOCK)
        while len(piece) < BLOCK:
            more = self._stream.read(BLOCK - len(piece))
            if not more:
                break
            piece += more
        return bytes(piece)

    @contextlib.contextmanager
    def _faults(self) -> Iterator[None]:
        try:
            yield
        except (lzma.LZMAError, zlib.error, EOFError, gzip.BadGzipFile) as error:
            raise StorageError(
                f"the image {self.path} is damaged or cut off: {error}", hint="download it anew"
            ) from None
        except OSError as error:
            raise StorageError(f"cannot read the image {self.path}: {error.strerror or error}") from None
