"""Signed messages: an envelope around the exact bytes that were signed.

The envelope is the msgpack array ``[key id, signature, body]``. The signature (Ed25519, RFC 8032) covers
``context + NUL + body``, so that one kind of message can never be passed off as another. How a
signature is made or checked comes in as an argument: this module knows no key.
"""

from collections.abc import Callable

import msgpack

from fl_protocol.errors import MessageError, SignatureError

__all__ = [
    "COMMAND_CONTEXT",
    "KEY_ID_BYTES",
    "TASK_CONTEXT",
    "Sign",
    "Verify",
    "open_envelope",
    "peek",
    "seal",
]

TASK_CONTEXT = b"fl1/task"
COMMAND_CONTEXT = b"fl1/command"
KEY_ID_BYTES = 8
"""A key id is the first 8 bytes of the sha256 of the raw public key; an unsigned envelope has none."""

Sign = Callable[[bytes], tuple[bytes, bytes]]
"""Maps the bytes to sign to ``(key id, signature)``."""
Verify = Callable[[bytes, bytes, bytes], bool]
"""Whether ``(key id, signature, signed bytes)`` holds under a key that is trusted now."""


def seal(context: bytes, body: bytes, sign: Sign) -> bytes:
    """Sign ``body`` as a message of kind ``context``."""
    key_id, signature = sign(context + b"\0" + body)
    envelope: bytes = msgpack.packb([key_id, signature, body], use_bin_type=True)
    return envelope


def open_envelope(context: bytes, envelope: bytes, verify: Verify, *, limit: int) -> bytes:
    """The body of a signed message.

    Raises:
        MessageError: not an envelope, or larger than ``limit`` bytes.
        SignatureError: the signature does not hold, or its key is not trusted.
    """
    key_id, signature, body = _parts(envelope, limit)
    if not verify(key_id, signature, context + b"\0" + body):
        raise SignatureError(
            f"a message signed by key {key_id.hex() or '(none)'}, which does not hold here",
            hint="the device trusts other keys than the coordinator's: compare trusted_keys in agent.toml",
        )
    return body


def peek(envelope: bytes, *, limit: int) -> bytes:
    """The body, unverified: act on it only if these very bytes have been verified before.

    Raises:
        MessageError: not an envelope, or larger than ``limit`` bytes.
    """
    return _parts(envelope, limit)[2]


def _parts(envelope: bytes, limit: int) -> tuple[bytes, bytes, bytes]:
    if len(envelope) > limit:
        raise MessageError(f"a signed message of {len(envelope)} bytes, more than the {limit} allowed here")
    try:
        parts = msgpack.unpackb(envelope, raw=False, max_array_len=3, max_bin_len=limit, max_map_len=0)
    except (ValueError, msgpack.UnpackException, RecursionError) as error:
        raise MessageError(f"not a signed message: {error}") from None
    if not isinstance(parts, list) or len(parts) != 3 or not all(isinstance(p, bytes) for p in parts):
        raise MessageError("a signed message is an array of key id, signature and body")
    key_id, signature, body = parts
    if len(key_id) not in (0, KEY_ID_BYTES) or len(signature) not in (0, 64):
        raise MessageError("a key id has 8 bytes and a signature 64")
    return key_id, signature, body
