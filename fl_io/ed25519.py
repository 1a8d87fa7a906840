"""Ed25519 keys (RFC 8032) for signed messages. ``cryptography`` is loaded at use, not at import."""

import hashlib
from collections.abc import Iterable

from fl_protocol.errors import ConfigError
from fl_protocol.signed import KEY_ID_BYTES, Sign, Verify

__all__ = ["new_private_key", "public_key_text", "read_public_key", "signer", "unsigned", "verifier"]

_PREFIX = "ed25519:"


def new_private_key() -> bytes:
    """A new private key, 32 bytes, raw."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    return Ed25519PrivateKey.generate().private_bytes_raw()


def public_key_text(private_key: bytes) -> str:
    """The public key as configuration files hold it: ``ed25519:`` and 64 hex digits."""
    return _PREFIX + _public(private_key).hex()


def read_public_key(text: str) -> bytes:
    """The raw public key of such a text; raises ConfigError."""
    try:
        raw = bytes.fromhex(text.removeprefix(_PREFIX))
    except ValueError:
        raw = b""
    if not text.startswith(_PREFIX) or len(raw) != 32:
        raise ConfigError(f"{text[:80]!r} is no public key", hint="write ed25519: and 64 hex digits")
    return raw


def signer(private_key: bytes) -> Sign:
    """Sign with a private key."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    key = Ed25519PrivateKey.from_private_bytes(private_key)
    key_id = _key_id(_public(private_key))
    return lambda content: (key_id, key.sign(content))


def verifier(public_keys: Iterable[bytes]) -> Verify:
    """Trust these raw public keys, and no other."""
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    trusted = {_key_id(raw): Ed25519PublicKey.from_public_bytes(raw) for raw in public_keys}

    def verify(key_id: bytes, signature: bytes, content: bytes) -> bool:
        key = trusted.get(key_id)
        if key is None:
            return False
        try:
            key.verify(signature, content)
        except InvalidSignature:
            return False
        return True

    return verify


def unsigned(content: bytes) -> tuple[bytes, bytes]:
    """The signature of a fleet that runs without any."""
    return b"", b""


def _public(private_key: bytes) -> bytes:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    return Ed25519PrivateKey.from_private_bytes(private_key).public_key().public_bytes_raw()


def _key_id(public_key: bytes) -> bytes:
    return hashlib.sha256(public_key).digest()[:KEY_ID_BYTES]
