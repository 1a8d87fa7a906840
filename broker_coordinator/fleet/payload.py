"""The payload: all that a device needs to be one of a fleet, in one file that is signed.

A compressed tar. MANIFEST names every other file with its sha256, in the words of ``sha256sum``; MANIFEST.sig
is an Ed25519 signature over ``fl1/payload``, NUL, and MANIFEST. The same files make the same archive, byte
for byte, as long as the compressor is the same: sorted, owned by 0, and dated by ``SOURCE_DATE_EPOCH``.
"""

import hashlib
import io
import json
import lzma
import os
import re
import tarfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

from fl_io.disk import seal_file
from fl_protocol.errors import LichenError, MessageError, SignatureError, StorageError
from fl_protocol.signed import Sign

__all__ = ["DESCRIPTION", "Member", "PayloadDescription", "check_payload", "write_payload"]

CONTEXT = b"fl1/payload"
MANIFEST, SIGNATURE, DESCRIPTION = "MANIFEST", "MANIFEST.sig", "lichen-payload.json"
FORMAT = "lichen-payload/1"
MOST_FILES = 50_000
MOST_BYTES = 2 << 30
_EPOCH = 315532800
"""1980: tar complains of older files, and zip knows none."""
_MOST_TEXT = 16 << 20
_LINE = re.compile(r"([0-9a-f]{64})  ([A-Za-z0-9_.+@=,~-][A-Za-z0-9_.+@=,~ /()-]*)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """A file of a payload; ``read`` gives its content, the same at each call."""

    path: str
    read: Callable[[], bytes]
    executable: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class PayloadDescription:
    """``lichen-payload.json``. ``packages`` maps each wheel's name to its version, ``debian`` lists what
    the device's own Debian has to have."""

    lichen: str
    arch: str
    pythons: tuple[str, ...]
    runtime: str
    packages: Mapping[str, str]
    debian: tuple[str, ...] = ()
    format: str = FORMAT

    def pack(self) -> bytes:
        """As it is in the payload."""
        return (json.dumps(asdict(self), indent=1, sort_keys=True) + "\n").encode()


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckedPayload:
    """What was found in a payload all of whose files are what its signed list says."""

    description: PayloadDescription
    files: int
    bytes: int


def write_payload(
    path: Path, members: Iterable[Member], description: PayloadDescription, sign: Sign, *, preset: int = 6
) -> str:
    """Write it, durably and at once; the sha256 of the file, in hex. ``preset`` is xz's.

    Raises:
        StorageError: the disk refuses.
        LichenError: two files have one name, or a name is none that a payload can hold.
    """
    members = [*members, Member(path=DESCRIPTION, read=description.pack)]
    members.sort(key=lambda member: member.path)
    manifest = _manifest(members)
    _, signature = sign(CONTEXT + b"\0" + manifest)
    head = [Member(path=MANIFEST, read=lambda: manifest), Member(path=SIGNATURE, read=lambda: signature)]
    unfinished = path.with_name(f".{path.name}.unfinished")
    try:
        with lzma.open(unfinished, "wb", preset=preset) as packed:
            _write_tar(packed, [*head, *members])
        digest = _sha256(unfinished)
        seal_file(unfinished, path, purpose="fleet.payload")
    except OSError as error:
        raise StorageError(f"cannot write {path}: {error.strerror or error}") from None
    finally:
        unfinished.unlink(missing_ok=True)
    return digest


def check_payload(path: Path, verify: Callable[[bytes, bytes], bool]) -> CheckedPayload:
    """Check signature, and every file. ``verify`` says whether (signature, signed bytes) holds.

    Raises:
        StorageError: it cannot be read.
        SignatureError: it is not signed by whom it should be.
        MessageError: it is no payload, or a file is not as listed.
    """
    try:
        with tarfile.open(path, "r|xz") as archive:
            return _checked(archive, verify)
    except FileNotFoundError:
        raise StorageError(f"there is no {path}") from None
    except (tarfile.TarError, lzma.LZMAError, EOFError, UnicodeDecodeError, ValueError) as error:
        raise MessageError(f"{path} is no whole payload: {error}", hint="copy or make it again") from None
    except OSError as error:
        raise StorageError(f"cannot read {path}: {error.strerror or error}") from None


def _checked(archive: tarfile.TarFile, verify: Callable[[bytes, bytes], bool]) -> CheckedPayload:
    members = _plain_files(archive)
    manifest, signature = (_expected(archive, members, name) for name in (MANIFEST, SIGNATURE))
    if not verify(signature, CONTEXT + b"\0" + manifest):
        raise SignatureError(
            "the payload is not signed by this fleet's coordinator", hint="name the fleet it is of: --fleet"
        )
    left = _listed(manifest)
    total, files, description = 0, len(left), b""
    for member in members:
        content = archive.extractfile(member)
        wanted = left.pop(member.name, None)
        total += member.size
        if content is None or wanted is None or total > MOST_BYTES:
            raise MessageError(f"{member.name[:200]!r} is not in the payload's list, or too large")
        digest = hashlib.sha256()
        while piece := content.read(1 << 20):
            digest.update(piece)
            if member.name == DESCRIPTION:
                description += piece[:_MOST_TEXT]
        if digest.hexdigest() != wanted:
            raise MessageError(f"{member.name} is not as the payload's list says", hint="copy it again")
    if left:
        raise MessageError(f"{len(left)} files are missing, {next(iter(left))} among them")
    return CheckedPayload(description=_described(description), files=files, bytes=total)


def _plain_files(archive: tarfile.TarFile) -> "Iterable[tarfile.TarInfo]":
    """An iterator over the files; folders are passed over, and nothing else may be there."""
    for count, member in enumerate(archive):
        if count > MOST_FILES or not (member.isreg() or member.isdir()):
            raise MessageError(f"{member.name[:200]!r} is neither a file nor a folder, or one too many")
        if member.isreg():
            yield member


def _expected(archive: tarfile.TarFile, members: "Iterable[tarfile.TarInfo]", name: str) -> bytes:
    member = next(iter(members), None)
    content = archive.extractfile(member) if member and member.name == name else None
    if content is None or member is None or member.size > _MOST_TEXT:
        raise MessageError(f"this is no payload: no {name} where it belongs")
    return content.read()


def _manifest(members: Iterable[Member]) -> bytes:
    lines: dict[str, str] = {}
    for member in members:
        line = f"{hashlib.sha256(member.read()).hexdigest()}  {member.path}"
        if _safe(line) is None or member.path in lines:
            raise LichenError(f"a payload cannot hold {member.path[:200]!r}, or not twice")
        lines[member.path] = line
    return "".join(f"{line}\n" for line in lines.values()).encode()


def _listed(manifest: bytes) -> dict[str, str]:
    lines = manifest.decode("ascii").splitlines()
    found = {name: digest for digest, name in filter(None, map(_safe, lines))}
    if len(found) != len(lines):
        raise MessageError("the payload's list names a file twice, or has a line that is none")
    return found


def _safe(line: str) -> tuple[str, str] | None:
    """Digest and path of a line, if it leads nowhere but down."""
    match = _LINE.fullmatch(line)
    if match is None or any(part in ("", ".", "..") for part in match[2].split("/")):
        return None
    return match[1], match[2]


def _described(content: bytes) -> PayloadDescription:
    body: dict[str, Any] = json.loads(content)
    if not isinstance(body, dict) or body.get("format") != FORMAT:
        raise MessageError(f"the payload's {DESCRIPTION} is not of format {FORMAT}")
    try:
        return PayloadDescription(
            lichen=str(body["lichen"]),
            arch=str(body["arch"]),
            pythons=tuple(map(str, body["pythons"])),
            runtime=str(body["runtime"]),
            packages={str(name): str(version) for name, version in body["packages"].items()},
            debian=tuple(map(str, body["debian"])),
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise MessageError(f"the payload's {DESCRIPTION} is not understood: {error}") from None


def _write_tar(packed: IO[bytes], members: Iterable[Member]) -> None:
    with tarfile.open(fileobj=packed, mode="w|", format=tarfile.GNU_FORMAT) as archive:
        folders: set[str] = set()
        for member in members:
            *parents, _ = member.path.split("/")
            for depth in range(1, len(parents) + 1):
                if (folder := "/".join(parents[:depth])) not in folders:
                    folders.add(folder)
                    archive.addfile(_entry(folder, tarfile.DIRTYPE, 0o755))
            content = member.read()
            entry = _entry(member.path, tarfile.REGTYPE, 0o755 if member.executable else 0o644)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))


def _entry(name: str, kind: bytes, mode: int) -> tarfile.TarInfo:
    entry = tarfile.TarInfo(name)
    entry.type, entry.mode, entry.mtime = kind, mode, _moment()
    return entry


def _moment() -> int:
    text = os.environ.get("SOURCE_DATE_EPOCH", "")
    return int(text) if text.isdecimal() else _EPOCH


def _sha256(path: Path) -> str:
    with open(path, "rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()
