"""The coordinator's signing key: made at the first run, kept in the state folder, never shown."""

from dataclasses import dataclass
from pathlib import Path

from fl_io.disk import DISK, Disk, write_file
from fl_io.ed25519 import new_private_key, public_key_text, read_public_key, signer, verifier
from fl_protocol.errors import ConfigError, StorageError
from fl_protocol.signed import Sign, Verify

__all__ = ["Signing", "open_key"]

KEY_FILE = "coordinator.key"
PUBLIC_FILE = "coordinator.pub"
_KEY_BYTES = 32
_RESTORE = (
    f"restore both files from a backup; to begin with another key, remove {PUBLIC_FILE} too, and change"
    " trusted_keys on every device"
)


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

    Any 32 bytes are a key: only ``coordinator.pub`` beside it tells a damaged or a lost one. Devices would
    trust nothing that is signed by another.

    Raises:
        ConfigError: the key file does not hold a key.
        StorageError: it cannot be read or written, or it is not the one that ``coordinator.pub`` was made of.
    """
    path, public = state / KEY_FILE, state / PUBLIC_FILE
    private = _checked(path, public)
    fresh = private is None
    if private is None:
        private = new_private_key()
        write_file(path, private, purpose="coordinator.key", disk=disk, mode=0o600)
    text = public_key_text(private)
    if _known(public) != text:
        write_file(public, f"{text}\n".encode(), purpose="coordinator.public_key", disk=disk)
    return Signing(
        sign=signer(private), verify=verifier([read_public_key(text)]), public_key=text, fresh=fresh
    )


def check_key(state: Path) -> None:
    """Return if the key in a state folder is whole, or there is none; raises as ``open_key``."""
    _checked(state / KEY_FILE, state / PUBLIC_FILE)


def _checked(path: Path, public: Path) -> bytes | None:
    """The private key, as far as it can be told that it is one; None where there never was any."""
    known = _known(public)
    try:
        private = path.read_bytes()
    except FileNotFoundError:
        if known:
            raise StorageError(
                f"{path} is gone, and {public.name} shows that there was one", hint=_RESTORE
            ) from None
        return None
    except OSError as error:
        raise StorageError(f"cannot read {path}: {error.strerror}") from None
    if len(private) != _KEY_BYTES:
        raise ConfigError(
            f"{path} holds {len(private)} bytes, a key has {_KEY_BYTES}", hint="restore it from a backup"
        )
    if known and known != public_key_text(private):
        raise StorageError(f"{path} is damaged, or not the key that {public.name} was made of", hint=_RESTORE)
    return private


def _known(public: Path) -> str:
    """The public key as it was written down; empty where it was not, or cannot be read as one."""
    try:
        text = public.read_text(encoding="utf-8").strip()
        read_public_key(text)
    except (OSError, ValueError, ConfigError):
        return ""
    return text
