"""The coordinator's signing key: made at the first run, kept in the state folder, never shown."""

from dataclasses import dataclass
from pathlib import Path

from fl_io.disk import DISK, Disk, write_file
from fl_io.ed25519 import new_private_key, public_key_text, read_public_key, signer, unsigned, verifier
from fl_protocol.errors import ConfigError, StorageError
from fl_protocol.signed import Sign, Verify

__all__ = ["Signing", "open_key", "without_key"]

KEY_FILE = "coordinator.key"
PUBLIC_FILE = "coordinator.pub"
_KEY_BYTES = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Signing:
    """``verify`` trusts this coordinator only. ``public_key`` is its text, empty without a key; ``fresh``
    says that it was made just now."""

    sign: Sign
    verify: Verify
    public_key: str = ""
    fresh: bool = False


def open_key(state: Path, *, disk: Disk = DISK) -> Signing:
    """The key in a state folder, made if there is none.

    Raises:
        ConfigError: the key file does not hold a key.
        StorageError: it cannot be read or written.
    """
    path = state / KEY_FILE
    try:
        private: bytes | None = path.read_bytes()
    except FileNotFoundError:
        private = None
    except OSError as error:
        raise StorageError(f"cannot read {path}: {error.strerror}") from None
    fresh = private is None
    if private is None:
        private = new_private_key()
        write_file(path, private, purpose="coordinator.key", disk=disk, mode=0o600)
    if len(private) != _KEY_BYTES:
        raise ConfigError(
            f"{path} holds {len(private)} bytes, a key has {_KEY_BYTES}", hint="restore it from a backup"
        )
    text = public_key_text(private)
    public = state / PUBLIC_FILE
    if not public.exists() or public.read_text(encoding="utf-8").strip() != text:
        write_file(public, f"{text}\n".encode(), purpose="coordinator.public_key", disk=disk)
    return Signing(
        sign=signer(private), verify=verifier([read_public_key(text)]), public_key=text, fresh=fresh
    )


def without_key() -> Signing:
    """An unsigned fleet: whoever may publish on its broker may command it. For trials only."""
    return Signing(sign=unsigned, verify=lambda key_id, signature, content: not key_id and not signature)
