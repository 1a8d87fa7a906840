"""Whatever parses bytes: it reads what was packed, and refuses everything else in one way only."""

import contextlib
import math
from dataclasses import replace

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fl_protocol.blob import BlobRef
from fl_protocol.command import COMMANDS, Command
from fl_protocol.errors import MessageError, SignatureError
from fl_protocol.fields import MAX_INTEGER
from fl_protocol.plan import TrainingPlan
from fl_protocol.presence import CoordinatorPresence, DeviceEvent, DevicePresence, GetRequest
from fl_protocol.ranges import ByteRanges
from fl_protocol.receipt import REFUSALS, Receipt
from fl_protocol.signed import TASK_CONTEXT, open_envelope, peek, seal
from fl_protocol.task import Pacing, TaskManifest
from fl_protocol.update import UpdateHeader, runtime_label, with_payload
from fl_protocol.version import VersionId

INTEGERS = st.integers(0, MAX_INTEGER)
NAMES = st.from_regex(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,63}", fullmatch=True)
SHARES = st.floats(0, 1, width=32)
PACKED_FLOATS = st.floats(0, 2.0**60, width=32)
METRICS = st.dictionaries(
    st.builds("{}.{}".format, st.sampled_from(["before", "after"]), NAMES),
    st.floats(-(2.0**60), 2.0**60, width=32) | st.integers(-MAX_INTEGER, MAX_INTEGER).map(float),
    max_size=8,
)


def octets(length: int):
    """Byte strings of one length."""
    return st.binary(min_size=length, max_size=length)


VERSIONS = st.builds(VersionId, epoch=INTEGERS, number=INTEGERS, digest=octets(16))
BLOBS = st.binary(max_size=20_000).map(lambda content: BlobRef.of(content, chunk_bytes=4096))
RANGES = st.lists(st.tuples(INTEGERS, INTEGERS), max_size=20).map(ByteRanges.of)


@st.composite
def headers(draw):
    """A header that belongs to its payload, and the payload."""
    import hashlib

    payload = draw(st.binary(max_size=200))
    planned = draw(st.integers(1, MAX_INTEGER))
    header = UpdateHeader(
        incarnation=draw(octets(8)),
        base=draw(VERSIONS),
        codec=draw(st.text(max_size=96)),
        size=len(payload),
        sha256=hashlib.sha256(payload).digest(),
        fingerprint=draw(octets(8)),
        num_examples=draw(st.integers(1, MAX_INTEGER)),
        steps_done=draw(st.integers(0, planned)),
        steps_planned=planned,
        kind=draw(st.sampled_from(["plain", "masked"])),
        lease=draw(st.none() | octets(8)),
        metrics=draw(METRICS),
        runtime=draw(st.from_regex(r"[A-Za-z0-9._-]{0,16}", fullmatch=True)),
    )
    return header, draw(st.none() | st.just(payload))


RECEIPTS = st.builds(
    Receipt,
    state=st.sampled_from(["open", "later", "done", "refused"]),
    epoch=INTEGERS,
    term=INTEGERS,
    reason=st.sampled_from(REFUSALS) | st.text(max_size=128),
    wait_s=st.floats(0, 604_800, width=32),
    missing=RANGES,
    credit=INTEGERS,
)
DEVICES = st.builds(
    DevicePresence,
    online=st.booleans(),
    session=octets(8),
    incarnation=st.none() | octets(8),
    agent=st.text(max_size=32),
    runtimes=st.lists(st.from_regex(r"[a-z]{1,12}", fullmatch=True), max_size=4).map(tuple),
    samples=INTEGERS,
    idle_reason=st.text(max_size=256),
    seen=st.tuples(INTEGERS, INTEGERS),
)
COORDINATORS = st.builds(
    CoordinatorPresence,
    session=octets(8),
    epoch=INTEGERS,
    term=INTEGERS,
    marker=st.just(b"") | octets(32),
    challenge=st.just(b"") | octets(8),
    rolled_back=st.booleans(),
)
GETS = st.builds(GetRequest, blob=st.text(max_size=64), index=INTEGERS)
EVENTS = st.builds(
    DeviceEvent,
    kind=st.sampled_from(["error", "command", "counters", "evidence"]),
    message=st.text(max_size=512),
    numbers=st.dictionaries(NAMES, PACKED_FLOATS, max_size=8),
    proof=st.binary(max_size=300),
)
COMMANDS_ = st.builds(
    Command,
    kind=st.sampled_from(COMMANDS),
    device=NAMES,
    term=INTEGERS,
    sequence=INTEGERS,
    lease=octets(8),
    version=VERSIONS,
    deadline_s=st.floats(0, 604_800, width=32),
    evidence=st.booleans(),
)
PLANS = st.builds(
    TrainingPlan,
    epochs=st.integers(1, 10_000),
    batch_size=st.integers(1, 1 << 20),
    lr=PACKED_FLOATS,
    momentum=SHARES,
    mu=PACKED_FLOATS,
    clip=PACKED_FLOATS,
    max_steps=INTEGERS,
    deadline_s=st.floats(1, 604_800, width=32),
)
TASKS = st.builds(
    TaskManifest,
    fleet=NAMES,
    task=NAMES,
    counter=INTEGERS,
    term=INTEGERS,
    version=VERSIONS,
    artifact=BLOBS,
    weights=BLOBS,
    fingerprint=octets(8),
    plan=PLANS,
    codec=st.text(max_size=96),
    pacing=st.builds(
        Pacing,
        participation=SHARES,
        spread_s=st.floats(0, 86_400, width=32),
        by_lease=st.booleans(),
        horizon=st.none() | INTEGERS,
    ),
    max_examples=st.integers(1, MAX_INTEGER),
    minimum_agent=st.text(max_size=32),
    mirror=st.none() | st.text(max_size=512),
)
MESSAGES = {
    Receipt: RECEIPTS,
    DevicePresence: DEVICES,
    CoordinatorPresence: COORDINATORS,
    GetRequest: GETS,
    DeviceEvent: EVENTS,
    Command: COMMANDS_,
    TaskManifest: TASKS,
}
READERS = [*(kind.unpack for kind in MESSAGES), UpdateHeader.unpack]
ANY = st.one_of(
    *(strategy.map(lambda message: message.pack()) for strategy in MESSAGES.values()),
    headers().map(lambda pair: pair[0].pack(pair[1])),
)
OBJECTS = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.binary(max_size=40)
    | st.text(max_size=40),
    lambda inner: st.lists(inner, max_size=6) | st.dictionaries(st.text(max_size=3), inner, max_size=6),
    max_leaves=20,
)  # fmt: skip


def only_refusals(read, *arguments, **options) -> None:
    """Call a reader; anything but a protocol error is a failure."""
    with contextlib.suppress(MessageError, SignatureError):
        read(*arguments, **options)


@pytest.mark.parametrize("kind", MESSAGES)
@given(data=st.data())
def test_what_is_packed_is_read_back(kind, data):
    """Fields, ranges, defaults: nothing is lost or changed on the way."""
    message = data.draw(MESSAGES[kind])
    assert kind.unpack(message.pack()) == message


@given(headers())
def test_a_header_is_read_back_with_its_payload_or_without(pair):
    """And packs again to the very bytes it was read from: its hash must not depend on who packs."""
    header, payload = pair
    packed = header.pack(payload)
    read, read_payload = UpdateHeader.unpack(packed)
    assert (read, read_payload) == (header, payload)
    assert read.pack(payload) == packed


@given(headers())
def test_a_payload_joins_a_packed_header_as_if_packed_with_it(pair):
    """An agent keeps headers packed, and a retry sends the same bytes."""
    header, payload = pair
    assert with_payload(header.pack(), payload or b"") == header.pack(payload or b"")
    full = replace(header, kind="masked", lease=b"l" * 8, metrics={"after.loss": 1.5}, runtime="onnx")
    assert with_payload(full.pack(), b"") == full.pack(b"")


def test_a_payload_joins_nothing_else():
    """What a damaged card gives for a header is not sent."""
    for strange in (b"", b"\xdf" + bytes(8), b"header"):
        with pytest.raises(MessageError, match="packed header"):
            with_payload(strange, b"payload")


@given(headers(), st.floats() | st.integers().map(float))
def test_any_metric_leaves_a_header_readable_and_stable(pair, value):
    """A diverged model reports infinite losses: its update is no less an update."""
    import dataclasses

    header = dataclasses.replace(pair[0], metrics={"before.loss": value, "after.count": 3.0})
    packed = header.pack()
    read, _ = UpdateHeader.unpack(packed)
    assert read.pack() == packed
    assert read.metrics["after.count"] == 3
    assert math.isfinite(read.metrics.get("before.loss", 0))


@given(st.binary(max_size=300) | OBJECTS.map(msgpack.packb))
def test_arbitrary_bytes_are_refused_in_one_way(content):
    """Random octets, and well-formed msgpack of anything."""
    for read in READERS:
        only_refusals(read, content)
    only_refusals(peek, content, limit=1000)
    only_refusals(open_envelope, TASK_CONTEXT, content, lambda *parts: False, limit=1000)


@given(ANY, st.data())
def test_mutated_messages_are_refused_in_one_way(packed, data):
    """Valid messages with octets changed, cut off, put in or repeated."""
    mutated = bytearray(packed)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(mutated)))
        until = data.draw(st.integers(at, min(len(mutated), at + 8)))
        mutated[at:until] = data.draw(st.binary(max_size=8))
    for read in READERS:
        only_refusals(read, bytes(mutated))


@given(ANY, OBJECTS, st.data())
def test_a_field_of_another_type_is_refused_in_one_way(packed, value, data):
    """Every key of every message in turn with a value that has no business there."""
    body = msgpack.unpackb(packed)
    body[data.draw(st.sampled_from([*sorted(body), "b"]))] = value
    for read in READERS:
        only_refusals(read, msgpack.packb(body))


@pytest.mark.parametrize("kind", MESSAGES)
@given(data=st.data())
def test_unknown_keys_are_ignored(kind, data):
    """A newer peer may say more."""
    message = data.draw(MESSAGES[kind])
    body = msgpack.unpackb(message.pack())
    body |= {"unknown": data.draw(OBJECTS), "zz": None}
    assert kind.unpack(msgpack.packb(body)) == message


WRONG = [
    (Receipt, {"s": "done", "e": 1, "t": 1}, {"e": 2**53, "t": -1, "s": "gone", "c": 1.5, "w": -1.0}),
    (Receipt, {"s": "open", "e": 1, "t": 1}, {"m": [1], "c": 2**53}),
    (Receipt, {"s": "open", "e": 1, "t": 1}, {"m": [5, 3], "r": "x" * 129, "w": math.nan}),
    (Receipt, {"s": "open", "e": 1, "t": 1}, {"m": [0, 2**53], "w": 2**53, "e": True}),
    (DevicePresence, {"o": True, "s": bytes(8)}, {"o": 1, "s": bytes(7), "i": b"", "x": "3", "r": 5}),
    (DevicePresence, {"o": True, "s": bytes(8)}, {"w": "x" * 257, "a": "x" * 33, "e": -1, "c": 2**64 - 1}),
    (CoordinatorPresence, {"s": bytes(8), "e": 0, "t": 0}, {"m": bytes(31), "q": "q", "b": 0, "e": None}),
    (GetRequest, {}, {"b": "x" * 65, "i": -1}),
    (DeviceEvent, {"k": "error"}, {"k": "unheard", "t": "x" * 513, "n": {"a": math.inf}, "p": "text"}),
    (DeviceEvent, {"k": "error"}, {"n": {"a": 2**53}, "k": b"error"}),
    (Command, {"k": "pause", "d": "d", "t": 1, "q": 1}, {"k": "explode", "w": 604_801.0, "l": bytes(9)}),
    (
        Command,
        {"k": "pause", "d": "d", "t": 1, "q": 1},
        {"k": "train", "v": {"e": 1, "n": 2}, "q": "1", "p": 1},
    ),
]


@pytest.mark.parametrize(("kind", "good", "changes"), WRONG)
def test_a_wrong_field_is_named(kind, good, changes):
    """Out of range, of another type, too long, not finite: the message says which."""
    kind.unpack(msgpack.packb(good))
    for key, value in changes.items():
        with pytest.raises(MessageError) as caught:
            kind.unpack(msgpack.packb(good | {key: value}))
        named = f"'{key}'" in str(caught.value) or "byte ranges" in str(caught.value)
        assert named or key in ("s", "k", "v", "n"), (key, str(caught.value))


@pytest.mark.parametrize("kind", MESSAGES)
def test_a_missing_field_is_named(kind):
    """Nothing that must be there has a silent default."""
    if kind is GetRequest:
        assert kind.unpack(msgpack.packb({})) == GetRequest()
        return
    with pytest.raises(MessageError, match="is missing"):
        kind.unpack(msgpack.packb({}))


def good_header() -> dict:
    """A begin as a map."""
    return {
        "i": bytes(8), "e": 1, "n": 2, "g": bytes(16), "c": "float32", "s": 0,
        "h": bytes.fromhex("e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"),
        "f": bytes(8), "x": 1, "d": 0, "p": 1,
    }  # fmt: skip


@pytest.mark.parametrize(
    "change",
    [{"x": 0}, {"p": 0}, {"d": 2}, {"h": bytes(31)}, {"s": (1 << 30) + 1}, {"c": "x" * 97}, {"b": b"x"},
     {"m": {"before": [1]}}, {"m": 7}, {"r": "x" * 17}, {"r": "a b"}, {"r": "\x1b[2J"},
     {"l": bytes(7)}, {"g": bytes(15)}, {"f": "12345678"}],
)  # fmt: skip
def test_a_header_that_contradicts_itself_is_refused(change):
    """Counts, lengths, and a payload that is not the one it names."""
    UpdateHeader.unpack(msgpack.packb(good_header() | {"b": b""}))
    with pytest.raises(MessageError):
        UpdateHeader.unpack(msgpack.packb(good_header() | change))


def test_any_name_becomes_one_that_a_header_carries():
    """A class may be called anything; its updates are no less good."""
    for name in ("onnx", "MyVeryLongTrainerOfThings", "Übung<1>", ""):
        label = runtime_label(name)
        read, _ = UpdateHeader.unpack(msgpack.packb(good_header() | {"r": label}))
        assert read.runtime == label
    assert runtime_label("Übung<1>") == "_bung_1_"


def test_large_and_nested_bodies_are_refused_before_they_cost_anything():
    """A limit on octets, on items, on depth, and no trailing bytes."""
    for body in (
        bytes(1 << 17),
        msgpack.packb({"s": "done"}) + b"\x00",
        b"\xdf\xff\xff\xff\xff",
        b"\xdd\xff\xff\xff\xff",
        b"\xc6\xff\xff\xff\xff",
        b"\x81\xa1s" + b"\x91" * 5000 + b"\xc0",
        msgpack.packb({str(number): number for number in range(300)}),
        msgpack.packb({1: "one"}),
        msgpack.packb([1, 2]),
    ):
        for read in READERS:
            with pytest.raises(MessageError):
                read(body)


@pytest.mark.parametrize("length", [255, 256, 257, 3000])
def test_texts_for_people_are_cut_not_refused(length):
    """A long reason must not make a presence, a receipt or an event unreadable."""
    text = "x" * length
    presence = DevicePresence(online=True, session=bytes(8), idle_reason=text)
    assert DevicePresence.unpack(presence.pack()).idle_reason == text[:256]
    assert Receipt.unpack(Receipt(state="later", epoch=1, term=1, reason=text).pack()).reason == text[:128]
    assert DeviceEvent.unpack(DeviceEvent(kind="error", message=text).pack()).message == text[:512]


@given(st.binary(max_size=100), st.binary(min_size=8, max_size=8), octets(64))
def test_an_envelope_hands_over_exactly_the_signed_bytes(body, key_id, signature):
    """What was signed is context, NUL and body; ``peek`` shows the body without a check."""
    envelope = seal(TASK_CONTEXT, body, lambda content: (key_id, signature))
    asked = []

    def verify(*parts: bytes) -> bool:
        asked.append(parts)
        return True

    assert open_envelope(TASK_CONTEXT, envelope, verify, limit=1000) == body
    assert asked == [(key_id, signature, b"fl1/task\0" + body)]
    assert peek(envelope, limit=1000) == body
    with pytest.raises(MessageError):
        peek(envelope, limit=len(envelope) - 1)


def test_a_signature_that_does_not_hold_is_its_own_error():
    """The key is named, and what to compare."""
    envelope = seal(TASK_CONTEXT, b"body", lambda content: (bytes(8), bytes(64)))
    with pytest.raises(SignatureError, match="0000000000000000") as caught:
        open_envelope(TASK_CONTEXT, envelope, lambda *parts: False, limit=1000)
    assert "trusted_keys" in caught.value.hint


@pytest.mark.parametrize(
    "parts", [[b"", b""], [b"", b"", b"", b""], ["", b"", b""], [bytes(7), bytes(64), b""]]
)
def test_an_envelope_has_three_octet_strings(parts):
    """A key id of 8 bytes or none, a signature of 64 or none."""
    with pytest.raises(MessageError):
        peek(msgpack.packb(parts), limit=1000)


@pytest.mark.parametrize("claim", [1e39, -1e300])
def test_a_metric_beyond_float32_makes_a_header_unreadable(claim):
    """Nobody writes one; a rule of the user's that met one would overflow."""
    header = UpdateHeader(
        incarnation=bytes(8),
        base=VersionId(epoch=1, number=0, digest=bytes(16)),
        codec="int8",
        size=1,
        sha256=bytes(32),
        fingerprint=bytes(8),
        num_examples=1,
        steps_done=1,
        steps_planned=1,
    )
    body = msgpack.unpackb(header.pack())
    packed = msgpack.packb(body | {"m": {"before": {"loss": claim}}})
    with pytest.raises(MessageError, match="loss"):
        UpdateHeader.unpack(packed)
