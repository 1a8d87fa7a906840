"""The authority of a fleet: signs the certificates of its broker, its coordinator and its devices.

EC P-256, which every device can verify in a millisecond or two. Validity is wide, 1970 to 9999 (RFC 5280,
4.1.2.5: no well-defined end), because devices boot without a clock: whoever is to be kept out is revoked.
Each certificate says what it is for, so that a device's key cannot pose as the broker.
"""

import datetime
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from ipaddress import ip_address

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from fl_io.tls import FLEET_AUTHORITY
from fl_protocol.errors import ConfigError

__all__ = ["BEGINNING", "END", "Authority", "Issued", "broker_hosts", "serial_of"]

BEGINNING = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
END = datetime.datetime(9999, 12, 31, 23, 59, 59, tzinfo=datetime.UTC)


@dataclass(frozen=True, slots=True, kw_only=True)
class Issued:
    """A certificate and its private key, both PEM; ``key`` is empty where the holder has it already."""

    certificate: bytes
    key: bytes
    serial: int


class Authority:
    """Signs with its key; ``certificate`` (PEM) is what everybody in the fleet trusts."""

    def __init__(self, certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> None:
        self._certificate = certificate
        self._key = key
        self.certificate = certificate.public_bytes(Encoding.PEM)

    @classmethod
    def make(cls, fleet: str) -> "Authority":
        """A new one, for a fleet of this name."""
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name(
            [
                x509.NameAttribute(NameOID.ORGANIZATION_NAME, fleet),
                x509.NameAttribute(NameOID.COMMON_NAME, FLEET_AUTHORITY),
            ]
        )
        certificate = (
            _begun(name, name, key.public_key(), key.public_key(), END)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_usage(signs=True), critical=True)
            .sign(key, SHA256())
        )
        return cls(certificate, key)

    @classmethod
    def read(cls, certificate: bytes, key: bytes) -> "Authority":
        """The one of these PEM files; raises ConfigError if they are not an authority's."""
        try:
            parsed = x509.load_pem_x509_certificate(certificate)
        except (ValueError, TypeError) as error:
            raise ConfigError(f"the authority's files cannot be read: {error}") from None
        private = _private(key)
        if private.public_key() != parsed.public_key():
            raise ConfigError("the authority's key is not that of its certificate")
        return cls(parsed, private)

    @property
    def key(self) -> bytes:
        """Its private key, PEM."""
        return _pem(self._key)

    def issue_broker(self, hosts: Sequence[str], *, key: bytes = b"") -> Issued:
        """A certificate for a server that is reached by these names and addresses; for the private ``key``
        (PEM) that it has, or a new one.

        Raises:
            ConfigError: one is neither a host's name nor an address, or the key cannot be read.
        """
        names = x509.SubjectAlternativeName([_general_name(host) for host in hosts])
        public = _private(key).public_key() if key else None
        return self._issue("broker", ExtendedKeyUsageOID.SERVER_AUTH, END, names, public)

    def issue_client(self, name: str, until: datetime.datetime = END, *, like: bytes = b"") -> Issued:
        """A certificate for a client that the broker shall know by ``name``; with a new key, or for that of
        the certificate ``like`` (PEM), which was issued here.

        Raises:
            ConfigError: ``like`` is not a certificate of that client, signed by this authority.
        """
        public = self._key_of(like, name) if like else None
        return self._issue(name, ExtendedKeyUsageOID.CLIENT_AUTH, until, public=public)

    def revocations(self, revoked: Iterable[tuple[int, datetime.datetime]], number: int) -> bytes:
        """The list of revoked serial numbers, PEM. It does not expire: a broker takes no one with one that
        has. ``number`` grows with each list."""
        listed = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(self._certificate.subject)
            .last_update(BEGINNING)
            .next_update(END)
            .add_extension(x509.CRLNumber(number), critical=False)
            .add_extension(self._identifier, critical=False)
        )
        for serial, when in revoked:
            entry = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(when)
            listed = listed.add_revoked_certificate(entry.build())
        return listed.sign(self._key, SHA256()).public_bytes(Encoding.PEM)

    def _issue(
        self,
        name: str,
        purpose: x509.ObjectIdentifier,
        until: datetime.datetime,
        names: x509.SubjectAlternativeName | None = None,
        public: ec.EllipticCurvePublicKey | None = None,
    ) -> Issued:
        key = None if public is not None else ec.generate_private_key(ec.SECP256R1())
        holder = public if key is None else key.public_key()
        assert holder is not None
        begun = (
            _begun(_named(name), self._certificate.subject, holder, self._key.public_key(), until)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(signs=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
        )
        if names is not None:
            begun = begun.add_extension(names, critical=False)
        certificate = begun.sign(self._key, SHA256())
        return Issued(
            certificate=certificate.public_bytes(Encoding.PEM),
            key=b"" if key is None else _pem(key),
            serial=certificate.serial_number,
        )

    def _key_of(self, certificate: bytes, name: str) -> ec.EllipticCurvePublicKey:
        """What is certified again was certified here before: whoever can write a file is no authority."""
        try:
            parsed = x509.load_pem_x509_certificate(certificate)
            parsed.verify_directly_issued_by(self._certificate)
        except (ValueError, TypeError, InvalidSignature):
            raise ConfigError(f"{name}'s certificate is not one of this authority") from None
        public = parsed.public_key()
        if parsed.subject != _named(name) or not isinstance(public, ec.EllipticCurvePublicKey):
            raise ConfigError(f"this is not {name}'s certificate: {parsed.subject.rfc4514_string()}")
        return public

    @property
    def _identifier(self) -> x509.AuthorityKeyIdentifier:
        return x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key())


def broker_hosts(certificate: bytes) -> list[str]:
    """The names and addresses that a broker's certificate (PEM) is for; raises ConfigError."""
    try:
        parsed = x509.load_pem_x509_certificate(certificate)
        names = parsed.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (ValueError, x509.ExtensionNotFound) as error:
        raise ConfigError(f"the broker's certificate cannot be read: {error}") from None
    return [str(name.value) for name in names]


def serial_of(certificate: bytes) -> str:
    """The serial number of a certificate (PEM), in hex; raises ConfigError."""
    try:
        return f"{x509.load_pem_x509_certificate(certificate).serial_number:x}"
    except ValueError as error:
        raise ConfigError(f"a certificate cannot be read: {error}") from None


def _begun(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePublicKey,
    signer: ec.EllipticCurvePublicKey,
    until: datetime.datetime,
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(BEGINNING)
        .not_valid_after(until)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer), critical=False)
    )


def _usage(*, signs: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs,
        key_cert_sign=signs,
        crl_sign=signs,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _named(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ip_address(host))
    except ValueError:
        pass
    try:
        return x509.DNSName(host)
    except ValueError:
        raise ConfigError(f"{host!r} is no host's name and no address") from None


def _private(key: bytes) -> ec.EllipticCurvePrivateKey:
    try:
        private = load_pem_private_key(key, password=None)
    except (ValueError, TypeError) as error:
        raise ConfigError(f"a private key of the fleet cannot be read: {error}") from None
    if not isinstance(private, ec.EllipticCurvePrivateKey):
        raise ConfigError("a private key of the fleet is none of an elliptic curve")
    return private


def _pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
