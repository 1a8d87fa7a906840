"""TLS to a broker: all is verified; a date alone is forgiven, and only to an authority that was pinned.

A device without a battery for its clock boots in 1970, and one that lay in a drawer for years finds every
certificate expired. Where ``ca`` names the authority, who signs is known without a clock: such a device
connects, and says so. Whoever may have a key of a certificate that expired needs a list of revocations
(in the file ``ca``) to be kept out.
"""

import math
import ssl
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fl_protocol.errors import ConfigError

__all__ = ["FLEET_AUTHORITY", "TlsFiles", "Trust", "fleets_of"]

FLEET_AUTHORITY = "fleet authority"
"""The common name of an authority that was made for one fleet; its organization is the fleet's name."""

ASK_AGAIN_S = 3600.0
"""How long after a date was forgiven connections are made without looking at dates first."""
_DATE_ERRORS = frozenset({9, 10, 11, 12})
"""OpenSSL's X509_V_ERR: a certificate or a list of revocations not yet valid, or expired."""
_NO_CHECK_TIME = 0x200000
"""OpenSSL's X509_V_FLAG_NO_CHECK_TIME, which Python gives no name."""
_REVOCATIONS = b"-----BEGIN X509 CRL-----"


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsFiles:
    """PEM files of a TLS connection; without ``ca`` the system's authorities are trusted.

    ``ca`` may hold lists of revoked certificates too: they are obeyed.
    """

    ca: Path | None = None
    certificate: Path | None = None
    key: Path | None = None


class Trust:
    """What a connection demands of the broker's certificate and shows of its own, now: files that are
    replaced are read again for the next connection.

    Raises:
        ConfigError: a file that cannot be read.
    """

    def __init__(self, files: TlsFiles) -> None:
        self._files = files
        self._date_error = ""
        self._revokes = False
        self._read()

    def reread(self) -> str:
        """Take the files as they are now, if they changed. Why not, where they are of no use (a key without
        its certificate yet, as both are being replaced; a list of revocations that is not there any more, or
        not yet): then those that were read before stay, and the next connection looks again."""
        if _stamps(self._files) == self._stamps:
            return ""
        try:
            self._read()
        except ConfigError as error:
            return str(error)
        return ""

    def _read(self) -> None:
        # Before their content: what is replaced in between is read once more.
        stamps = _stamps(self._files)
        strict, undated = _context(self._files), None
        if self._files.ca is not None:
            undated = _context(self._files)
            undated.verify_flags |= _NO_CHECK_TIME
        contexts = [strict] if undated is None else [strict, undated]
        revokes = [bool(context.verify_flags & ssl.VERIFY_CRL_CHECK_LEAF) for context in contexts]
        if self._revokes and not all(revokes):
            # A copy that has come as far as the authority looks whole: nobody revoked may slip in with it.
            raise ConfigError(
                f"the list of revocations is gone from {self._files.ca}",
                hint="where that is meant, start again",
            )
        self._revokes = any(revokes)
        self._strict, self._undated, self._stamps = strict, undated, stamps
        self._forgiven_until = -math.inf

    @property
    def context(self) -> ssl.SSLContext:
        """For the next connection."""
        return self._undated if self._undated is not None and self.date_error else self._strict

    @property
    def date_error(self) -> str:
        """What is forgiven to it; empty where nothing is."""
        return self._date_error if time.monotonic() < self._forgiven_until else ""

    def forgives(self, error: ssl.SSLCertVerificationError) -> bool:
        """Whether to connect again, at once, without looking at dates."""
        if self._undated is None or self.date_error or not is_date_error(error):
            return False
        self._date_error = error.verify_message
        self._forgiven_until = time.monotonic() + ASK_AGAIN_S
        return True


def _stamps(files: TlsFiles) -> tuple[tuple[int, ...] | None, ...]:
    """What changes when a file does: inode, size, time; None for one that is not there."""
    found: list[tuple[int, ...] | None] = []
    for path in (files.ca, files.certificate, files.key):
        try:
            stat = path.stat() if path is not None else None
        except OSError:
            stat = None
        found.append((stat.st_ino, stat.st_size, stat.st_mtime_ns) if stat is not None else None)
    return tuple(found)


def fleets_of(ca: Path) -> tuple[str, ...]:
    """The fleets whose authorities are in a PEM file; other authorities are left out.

    Raises:
        ConfigError: it cannot be read.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    try:
        context.load_verify_locations(str(ca))
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(f"TLS files cannot be used: {ca}: {error}") from None
    names = [dict(_flat(certificate["subject"])) for certificate in context.get_ca_certs()]
    fleets = [name.get("organizationName", "") for name in names if name.get("commonName") == FLEET_AUTHORITY]
    return tuple(dict.fromkeys(filter(None, fleets)))


def _flat(subject: Any) -> Iterator[tuple[str, str]]:
    """A name as ``ssl`` gives it: a tuple of tuples of pairs."""
    for part in subject:
        yield from part


def is_date_error(error: ssl.SSLCertVerificationError) -> bool:
    """Whether nothing but a date was found wrong: a clock that is set later mends it."""
    return error.verify_code in _DATE_ERRORS


class _Socket(ssl.SSLSocket):
    """Closes itself where the handshake fails: paho leaves it to the garbage collection."""

    def do_handshake(self, block: bool = False) -> None:
        try:
            super().do_handshake(block)
        except BaseException:
            self.close()
            raise


def _context(files: TlsFiles) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=str(files.ca) if files.ca else None)
        context.sslsocket_class = _Socket
        if files.ca is not None and _REVOCATIONS in files.ca.read_bytes():
            context.verify_flags |= ssl.VERIFY_CRL_CHECK_LEAF
        if files.certificate is not None:
            context.load_cert_chain(str(files.certificate), str(files.key) if files.key else None)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(f"TLS files cannot be used: {error}") from None
    return context
