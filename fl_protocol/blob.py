"""Content-addressed blobs: how a model or a graph is named, cut and checked.

A blob is cut into chunks of a fixed size. Its reference carries the hash of the whole and of every chunk,
so a device verifies each chunk on its own, resumes anywhere, and needs nobody but the broker.
"""

import base64
import functools
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fl_protocol.errors import MessageError
from fl_protocol.fields import Fields

__all__ = ["ADDRESS_CHARS", "CHUNK_BYTES", "INLINE_CHUNKS", "MAX_BLOB_BYTES", "BlobRef", "address_of"]

CHUNK_BYTES = 1 << 16
MAX_BLOB_BYTES = 1 << 31
INLINE_CHUNKS = 64
"""A reference with more chunks than this carries their hashes in a blob of their own."""
ADDRESS_CHARS = 26
_SHA256_BYTES = 32


@functools.lru_cache(maxsize=1024)
def address_of(sha256: bytes) -> str:
    """The name of a blob in a topic: 128 bits of its sha256 in lower-case base32 (26 characters).

    Only an address: content is always checked against the full hash of the signed reference.
    """
    return base64.b32encode(sha256[:16]).decode().rstrip("=").lower()


@dataclass(frozen=True, slots=True, kw_only=True)
class BlobRef:
    """A blob: sha256 and ``size`` in bytes of the whole, and the sha256 of each chunk of ``chunk_bytes``.

    ``chunks`` is empty where the list is a blob of its own: ``chunk_list`` then refers to it (its
    content is the concatenated hashes).
    """

    sha256: bytes
    size: int
    chunk_bytes: int = CHUNK_BYTES
    chunks: tuple[bytes, ...] = ()
    chunk_list: "BlobRef | None" = None

    @classmethod
    def of(cls, content: bytes, *, chunk_bytes: int = CHUNK_BYTES) -> "BlobRef":
        """The reference of ``content``, all chunk hashes inline."""
        view = memoryview(content)
        chunks = tuple(
            hashlib.sha256(view[start : start + chunk_bytes]).digest()
            for start in range(0, max(len(content), 1), chunk_bytes)
        )
        sha256 = hashlib.sha256(content).digest()
        return cls(sha256=sha256, size=len(content), chunk_bytes=chunk_bytes, chunks=chunks)

    @property
    def address(self) -> str:
        """The name of this blob in topics."""
        return address_of(self.sha256)

    @property
    def chunk_count(self) -> int:
        """Number of chunks; an empty blob has one, empty."""
        return max(1, -(-self.size // self.chunk_bytes))

    def chunk_range(self, index: int) -> tuple[int, int]:
        """Byte range ``[start, end)`` of chunk ``index``."""
        start = index * self.chunk_bytes
        return start, min(start + self.chunk_bytes, self.size)

    def listed(self) -> "tuple[BlobRef, bytes | None]":
        """This reference as it travels, and the content of its chunk list where that is its own blob."""
        if len(self.chunks) <= INLINE_CHUNKS:
            return self, None
        content = b"".join(self.chunks)
        slim = BlobRef(
            sha256=self.sha256,
            size=self.size,
            chunk_bytes=self.chunk_bytes,
            chunk_list=BlobRef.of(content, chunk_bytes=self.chunk_bytes),
        )
        return slim, content

    def with_chunk_list(self, content: bytes) -> "BlobRef":
        """The whole reference, the content of its chunk list in hand.

        Raises:
            MessageError: the list is not the one this reference names.
        """
        if hashlib.sha256(content).digest() != (self.chunk_list or self).sha256:
            raise MessageError("a chunk list that is not the one its reference names")
        chunks = tuple(content[at : at + _SHA256_BYTES] for at in range(0, len(content), _SHA256_BYTES))
        if len(chunks) != self.chunk_count or len(content) % _SHA256_BYTES:
            raise MessageError("a chunk list of the wrong length")
        return BlobRef(sha256=self.sha256, size=self.size, chunk_bytes=self.chunk_bytes, chunks=chunks)

    def to_body(self) -> Mapping[str, Any]:
        """The map that travels: ``h`` hash, ``s`` size, ``b`` chunk size, ``c`` hashes | ``l`` list."""
        body: dict[str, Any] = {"h": self.sha256, "s": self.size, "b": self.chunk_bytes}
        if self.chunk_list is not None:
            body["l"] = self.chunk_list.to_body()
        elif len(self.chunks) > 1:
            body["c"] = b"".join(self.chunks)
        return body

    @classmethod
    def from_body(cls, fields: Fields, *, depth: int = 0) -> "BlobRef":
        """Read a reference.

        Raises:
            MessageError: a field is missing, ill-typed, or the hashes do not match the size.
        """
        sha256 = fields.octets("h", length=_SHA256_BYTES)
        size = fields.integer("s", high=MAX_BLOB_BYTES)
        chunk_bytes = fields.integer("b", low=4096, high=120 << 10)
        count = max(1, -(-size // chunk_bytes))
        if "l" in fields:
            if depth:
                raise MessageError("a chunk list of a chunk list")
            inner = cls.from_body(fields.group("l"), depth=1)
            if inner.size != count * _SHA256_BYTES:
                raise MessageError("a chunk list of the wrong length")
            return cls(sha256=sha256, size=size, chunk_bytes=chunk_bytes, chunk_list=inner)
        joined = fields.octets("c", length=count * _SHA256_BYTES) if count > 1 else sha256
        chunks = tuple(joined[at : at + _SHA256_BYTES] for at in range(0, len(joined), _SHA256_BYTES))
        return cls(sha256=sha256, size=size, chunk_bytes=chunk_bytes, chunks=chunks)
