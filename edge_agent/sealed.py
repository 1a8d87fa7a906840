"""Sealed bytes: content under its own sha256, so that what a failing card made of it is noticed.

For what nobody else holds a hash of: personal tensors, checkpoints.
"""

import hashlib

from fl_protocol.errors import StorageError

__all__ = ["seal", "unseal"]

_MAGIC = b"LcnS"
_HEAD_BYTES = len(_MAGIC) + hashlib.sha256().digest_size


def seal(content: bytes) -> bytes:
    """``content`` behind 4 bytes of magic and its sha256."""
    return _MAGIC + hashlib.sha256(content).digest() + content


def unseal(sealed: bytes, what: str) -> memoryview:
    """The content, without a copy.

    Raises:
        StorageError: it is not what was sealed; the message names ``what``.
    """
    content = memoryview(sealed)[_HEAD_BYTES:]
    if sealed[:_HEAD_BYTES] != _MAGIC + hashlib.sha256(content).digest():
        raise StorageError(f"{what} is damaged", hint="nothing to do: the device goes on without it")
    return content
