"""An authority of a test's own, and brokers with its certificates."""

import contextlib
import datetime
import os
import pwd
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

__all__ = ["Authority", "BrokerFiles", "tls_mosquitto"]

DAY = datetime.timedelta(days=1)
START_S = 15.0


@dataclass(frozen=True, slots=True, kw_only=True)
class BrokerFiles:
    """A broker's certificate and key, as PEM files."""

    certificate: Path
    key: Path
    serial: int


class Authority:
    """Signs whatever a test asks for; ``ca`` is its own certificate, valid for a year around now."""

    def __init__(self, folder: Path, name: str = "authority") -> None:
        self._folder = folder
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
        self.now = datetime.datetime.now(datetime.UTC)
        certificate = (
            self._begun(self._name, self._key.public_key(), (-180, 180))
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_usage(signs=True), critical=True)
            .sign(self._key, SHA256())
        )
        self.ca = self._write(f"{name}.pem", certificate.public_bytes(Encoding.PEM))

    def broker(self, host: str = "127.0.0.1", *, days: tuple[int, int] = (-30, 30)) -> BrokerFiles:
        """A certificate for ``host``, valid from and until so many days from now."""
        key = ec.generate_private_key(ec.SECP256R1())
        try:
            subject: x509.GeneralName = x509.IPAddress(ip_address(host))
        except ValueError:
            subject = x509.DNSName(host)
        name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "broker")])
        certificate = (
            self._begun(name, key.public_key(), days)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(x509.SubjectAlternativeName([subject]), critical=False)
            .add_extension(_usage(signs=False), critical=True)
            .sign(self._key, SHA256())
        )
        stem = f"broker-{certificate.serial_number:x}"
        secret = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        return BrokerFiles(
            certificate=self._write(f"{stem}.pem", certificate.public_bytes(Encoding.PEM)),
            key=self._write(f"{stem}.key", secret),
            serial=certificate.serial_number,
        )

    def with_revocations(self, *serials: int, days: tuple[int, int] = (-1, 30)) -> Path:
        """A file of ``ca`` and a list that revokes these certificates."""
        last, following = (self.now + count * DAY for count in days)
        listed = x509.CertificateRevocationListBuilder().issuer_name(self._name)
        listed = listed.last_update(last).next_update(following)
        for serial in serials:
            entry = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(last)
            listed = listed.add_revoked_certificate(entry.build())
        listed = listed.add_extension(x509.CRLNumber(1), critical=False)
        listed = listed.add_extension(self._issuer(), critical=False)
        content = self.ca.read_bytes() + listed.sign(self._key, SHA256()).public_bytes(Encoding.PEM)
        return self._write("with-revocations.pem", content)

    def _begun(self, subject: x509.Name, key, days: tuple[int, int]) -> x509.CertificateBuilder:
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(self.now + days[0] * DAY)
            .not_valid_after(self.now + days[1] * DAY)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
            .add_extension(self._issuer(), critical=False)
        )

    def _issuer(self) -> x509.AuthorityKeyIdentifier:
        return x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key())

    def _write(self, name: str, content: bytes) -> Path:
        path = self._folder / name
        path.write_bytes(content)
        return path


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


@contextlib.contextmanager
def tls_mosquitto(program: str, folder: Path, files: BrokerFiles, ca: Path, *more: str) -> Iterator[int]:
    """A mosquitto that listens with TLS on loopback only, ``more`` lines in its configuration; its port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    lines = [
        f"listener {port} 127.0.0.1",
        "allow_anonymous true",
        f"cafile {ca}",
        f"certfile {files.certificate}",
        f"keyfile {files.key}",
        "message_size_limit 262144",
        "max_queued_messages 20000",
        *more,
    ]
    if os.geteuid() == 0:
        lines.append(f"user {pwd.getpwuid(0).pw_name}")
    configuration = folder / f"tls-{port}.conf"
    configuration.write_text("\n".join(lines) + "\n")
    with (folder / f"tls-{port}.log").open("wb") as log:
        process = subprocess.Popen([program, "-c", str(configuration)], stdout=log, stderr=log)
    try:
        until = time.monotonic() + START_S
        while True:
            with contextlib.suppress(OSError):
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            assert process.poll() is None
            assert time.monotonic() < until
            time.sleep(0.02)
        yield port
    finally:
        process.terminate()
        process.wait(10)
