"""The independent reader reads the vectors as we wrote them, and the page shows octets that exist."""

import ast
import hashlib
import importlib.util
import json
import re
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

HERE = Path(__file__).parent
VECTORS = HERE.parent / "vectors" / "messages"
PAGE = HERE.parents[1] / "docs" / "protocol.md"
KINDS = ("begin", "receipt", "state", "coordinator", "command", "get", "event", "task")


def load(name: str):
    """A module of this folder."""
    spec = importlib.util.spec_from_file_location(name, HERE / f"{name}.py")
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


bodies = load("bodies")
messages = load("messages")
ed25519 = load("ed25519")


def octets(value):
    """A JSON value with its octet strings."""
    if isinstance(value, str) and value.startswith("hex:"):
        return bytes.fromhex(value[4:])
    if isinstance(value, list):
        return [octets(entry) for entry in value]
    if isinstance(value, dict):
        return {key: octets(entry) for key, entry in value.items()}
    return value


def vectors(name: str):
    """A file of vectors."""
    return octets(json.loads((VECTORS / f"{name}.json").read_text()))


@pytest.mark.parametrize("name", ["bodies", "messages", "ed25519"])
def test_the_reader_is_independent(name):
    """It imports the standard library and itself, nothing else."""
    tree = ast.parse((HERE / f"{name}.py").read_text())
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    imported |= {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert imported <= sys.stdlib_module_names | {"bodies"}


@pytest.mark.parametrize("kind", KINDS)
def test_messages_are_read_alike(kind):
    """Every field of every case."""
    read = getattr(messages, f"read_{kind}")
    for case in vectors(kind)["cases"]:
        assert read(case["bytes"]) == case["fields"], case["name"]


def test_every_refusal_of_the_page_is_in_the_vectors():
    """The closed list, in the page, in the reader and in the code."""
    said = {case["fields"]["reason"] for case in vectors("receipt")["cases"]} - {"", "busy"}
    listed = PAGE.read_text().split("| refused with |")[1].split("\n\n")[0]
    assert said == set(messages.REFUSALS) == set(re.findall(r"^\| `(\w+)`", listed, re.MULTILINE))


def test_topics_are_read_alike():
    """Kinds, names, ids and numbers."""
    table = vectors("topics")
    for case in table["cases"]:
        parts = {key: value for key, value in case.items() if key != "topic"}
        assert messages.read_topic(table["fleet"], case["topic"]) == parts
    with pytest.raises(bodies.Refused):
        messages.read_topic("other", table["cases"][0]["topic"])


def test_references_are_read_alike_and_name_their_content():
    """Addresses, chunk hashes, and the list where it is a blob of its own."""
    for case in vectors("blob_ref")["cases"]:
        reference = messages.read_reference(bodies.Body.of(case["bytes"], 1 << 16))
        assert reference == case["fields"]
        content = bytes(index * 31 % 251 for index in range(reference["size"]))
        assert hashlib.sha256(content).digest() == reference["sha256"]
        assert messages.address(reference["sha256"]) == case["address"]
        chunks = [hashlib.sha256(chunk).digest() for chunk in messages.cut(content, reference["chunk_bytes"])]
        if reference["chunk_list"] is None:
            assert chunks == reference["chunks"]
        else:
            assert b"".join(chunks) == case["chunk_list"]
            assert hashlib.sha256(case["chunk_list"]).digest() == reference["chunk_list"]["sha256"]


def test_envelopes_are_read_and_verified_alike():
    """By an implementation of Ed25519 of its own."""
    table = vectors("envelope")
    public_key = bytes.fromhex(table["public_key"].removeprefix("ed25519:"))
    for case in table["cases"]:
        fields = case["fields"]
        read = messages.read_envelope(case["bytes"], 32 << 10)
        assert read == {key: fields[key] for key in ("key_id", "signature", "body")}
        signed = messages.signed_octets(fields["context"], fields["body"])
        if not fields["key_id"]:
            assert not ed25519.verify(public_key, fields["signature"], signed)
            continue
        assert fields["key_id"] == messages.key_id(public_key)
        assert ed25519.verify(public_key, fields["signature"], signed)
        other = messages.signed_octets("fl1/other", fields["body"])
        assert not ed25519.verify(public_key, fields["signature"], other)


def test_draws_fingerprints_and_hashes_are_the_same():
    """All that both sides compute for themselves."""
    for case in vectors("participation")["cases"]:
        assert messages.participates(case["device"], case["digest"], case["share"]) is case["draw"]
    for layout in vectors("layout")["cases"]:
        assert messages.fingerprint(layout["tensors"]) == layout["fingerprint"]
    table = vectors("update_hash")
    for case in table["cases"]:
        header = messages.read_begin(case["header"])
        assert messages.write_header(header) == case["header"]
        assert messages.update_hash(table["update_id"], header) == case["update_hash"]
    with_payload = vectors("begin")["cases"][1]
    header = messages.read_begin(with_payload["bytes"])
    assert messages.update_hash(table["update_id"], header) == table["cases"][1]["update_hash"]


@given(st.binary(max_size=120), st.sampled_from(KINDS))
def test_arbitrary_octets_are_refused(content, kind):
    """Both readers agree on that, too: the reader raises Refused and nothing else."""
    try:
        getattr(messages, f"read_{kind}")(content)
    except bodies.Refused:
        return
    assert kind == "get"  # a map without keys asks for the manifest


def known_octets() -> str:
    """All octets of all vectors, in hex."""
    return "\n".join(re.findall(r"hex:([0-9a-f]+)", "".join(path.read_text() for path in VECTORS.iterdir())))


def test_every_octet_shown_in_the_page_is_in_the_vectors():
    """An example that is wrong is worse than none."""
    known, shown = known_octets(), []
    for line in PAGE.read_text().splitlines():
        shown += re.findall(r"`([0-9a-f]{16,})`", line)
        if line.startswith("    "):
            beginning = re.match(r"(?:\s*(?:[0-9a-f]{2})+(?:\.\.\.[0-9a-f]+)?(?=\s|$)|\s*\.\.\.)*", line[4:])[
                0
            ]
            shown += re.sub(r"\s", "", beginning).split("...")
    shown = [fragment for fragment in shown if len(fragment) >= 8]
    assert len(shown) > 20
    assert [fragment for fragment in shown if fragment not in known] == []
