"""A payload is what its signed list says, or it is refused."""

import contextlib
import hashlib
import io
import lzma
import tarfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker_coordinator.fleet.payload import Member, PayloadDescription, check_payload, write_payload
from fl_io.ed25519 import new_private_key, public_key_text, read_public_key, signer, verifier
from fl_protocol.errors import LichenError, MessageError, SignatureError, StorageError

KEY = new_private_key()
ABOUT = PayloadDescription(
    lichen="1.2.3", arch="aarch64", pythons=("3.11", "3.13"), runtime="numpy", packages={"numpy": "2.0"}
)
FILES = {"install.sh": b"#!/bin/sh\n", "lib/python3/a/b.py": b"x = 1\n" * 200, "lib/python3/a.py": b""}


def members(files=FILES):
    """The files as a payload's."""
    return [
        Member(path=path, read=lambda content=content: content, executable=path == "install.sh")
        for path, content in files.items()
    ]


def trusting(private=KEY):
    """A check of signatures that trusts this key."""
    key_id, _ = signer(private)(b"")
    check = verifier([read_public_key(public_key_text(private))])
    return lambda signature, signed: check(key_id, signature, signed)


@pytest.fixture
def payload(tmp_path):
    """A payload."""
    write_payload(tmp_path / "p.tar.xz", members(), ABOUT, signer(KEY))
    return tmp_path / "p.tar.xz"


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The bytes of a payload."""
    path = tmp_path_factory.mktemp("whole") / "p.tar.xz"
    write_payload(path, members(), ABOUT, signer(KEY))
    return path.read_bytes()


def rewritten(payload, change):
    """The payload with its tar changed by ``change(name, entry, content)``, which gives what to put there."""
    packed = io.BytesIO()
    with (
        tarfile.open(payload) as old,
        lzma.open(packed, "wb", preset=0) as xz,
        tarfile.open(fileobj=xz, mode="w|", format=tarfile.GNU_FORMAT) as new,
    ):
        for entry in old:
            content = old.extractfile(entry).read() if entry.isreg() else b""
            for name, kind, body in change(entry.name, entry.type, content):
                entry.name, entry.type, entry.size = name, kind, len(body)
                new.addfile(entry, io.BytesIO(body))
    payload.write_bytes(packed.getvalue())


def test_a_payload_is_read_back(payload):
    """Description and number of files; the description is one of them."""
    found = check_payload(payload, trusting())
    assert found.description == ABOUT
    assert found.files == len(FILES) + 1


def test_the_same_files_make_the_same_bytes(tmp_path, payload, monkeypatch):
    """Whatever order they come in; SOURCE_DATE_EPOCH dates them, and changes nothing else."""
    write_payload(tmp_path / "q.tar.xz", reversed(members()), ABOUT, signer(KEY))
    assert (tmp_path / "q.tar.xz").read_bytes() == payload.read_bytes()
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    write_payload(tmp_path / "r.tar.xz", members(), ABOUT, signer(KEY))
    with tarfile.open(tmp_path / "r.tar.xz") as archive:
        assert {entry.mtime for entry in archive} == {1700000000}
        assert {(entry.uid, entry.gid, entry.uname) for entry in archive} == {(0, 0, "")}
    check_payload(tmp_path / "r.tar.xz", trusting())


def test_it_says_the_sha256_of_the_file(tmp_path):
    """What an operator gives to install.sh."""
    digest = write_payload(tmp_path / "p.tar.xz", members(), ABOUT, signer(KEY))
    assert digest == hashlib.sha256((tmp_path / "p.tar.xz").read_bytes()).hexdigest()


def test_another_fleets_payload_is_refused(payload):
    """Signed, but by another key."""
    with pytest.raises(SignatureError):
        check_payload(payload, trusting(new_private_key()))


def test_a_signature_of_another_kind_of_message_is_none(tmp_path):
    """The list is signed with its own context: a device's task cannot be passed off as a payload."""
    write_payload(
        tmp_path / "p.tar.xz",
        members(),
        ABOUT,
        lambda content: signer(KEY)(content.replace(b"fl1/payload", b"fl1/task")),
    )
    with pytest.raises(SignatureError):
        check_payload(tmp_path / "p.tar.xz", trusting())


@pytest.mark.parametrize(
    "change",
    [
        lambda name, kind, body: [(name, kind, b"rm -rf /\n" if name == "install.sh" else body)],
        lambda name, kind, body: [] if name == "install.sh" else [(name, kind, body)],
        lambda name, kind, body: (
            [(name, kind, body)] + ([("evil.py", kind, b"")] if name == "install.sh" else [])
        ),
        lambda name, kind, body: [(name, kind, body)] * (2 if name == "install.sh" else 1),
        lambda name, kind, body: [("../" + name if name == "install.sh" else name, kind, body)],
        lambda name, kind, body: [
            (name, *((tarfile.SYMTYPE, b"") if name == "install.sh" else (kind, body)))
        ],
        lambda name, kind, body: [] if name == "MANIFEST" else [(name, kind, body)],
    ],
    ids=["changed", "missing", "added", "twice", "elsewhere", "link", "no list"],
)
def test_what_is_not_as_the_list_says_is_refused(payload, change):
    """A file changed, gone, added, doubled, led out, or made a link; or there is no list."""
    rewritten(payload, change)
    with pytest.raises(MessageError):
        check_payload(payload, trusting())


@given(at=st.integers(0, 10_000), flip=st.integers(1, 255), cut=st.booleans())
def test_a_damaged_file_is_refused_or_no_different(tmp_path_factory, whole, at, flip, cut):
    """A byte changed or the end cut off: an error of ours, or all files are as listed all the same."""
    damaged = tmp_path_factory.mktemp("damaged") / "p.tar.xz"
    content = bytearray(whole)
    at %= len(content)
    content[at] ^= flip
    damaged.write_bytes(content[:at] if cut else content)
    with contextlib.suppress(LichenError):
        assert check_payload(damaged, trusting()).description == ABOUT


@pytest.mark.parametrize("path", ["/etc/passwd", "a/../b", "a//b", "a\nb", "", "./a"])
def test_a_name_that_leads_elsewhere_is_never_written(tmp_path, path):
    """Nor is a file left behind."""
    with pytest.raises(LichenError):
        write_payload(tmp_path / "p.tar.xz", members({path: b""}), ABOUT, signer(KEY))
    assert not list(tmp_path.iterdir())


def test_what_is_not_there_is_said(tmp_path):
    """A wrong path is no damaged payload."""
    with pytest.raises(StorageError, match="there is no"):
        check_payload(tmp_path / "p.tar.xz", trusting())
