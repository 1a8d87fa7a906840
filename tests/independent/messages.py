"""An independent reader of messages, written from docs/protocol.md alone.

Plain Python, standard library only; it imports nothing of Lichen's. Every reader takes octets and returns a
dict under the names of the vectors, or raises ``Refused``.
"""

import base64
import hashlib
import math
import re
import struct


class Refused(Exception):
    """What was read is not what the protocol promises."""


# Section 4: bodies, and the part of msgpack they use.

BIG_INTEGER = 2**53
MAX_DEPTH = 16


def unpack(octets):
    """The value of a whole msgpack message."""
    value, end = _value(octets, 0, 0)
    if end != len(octets):
        raise Refused("octets behind the message")
    return value


def _value(octets, at, depth):
    if at >= len(octets) or depth > MAX_DEPTH:
        raise Refused("cut off, or too deep")
    head = octets[at]
    at += 1
    if head <= 0x7F:
        return head, at
    if head >= 0xE0:
        return head - 0x100, at
    if head <= 0x8F:
        return _map(octets, at, head & 0x0F, depth)
    if head <= 0x9F:
        return _array(octets, at, head & 0x0F, depth)
    if head <= 0xBF:
        return _text(*_cut(octets, at, head & 0x1F))
    if head in (0xC0, 0xC2, 0xC3):
        return {0xC0: None, 0xC2: False, 0xC3: True}[head], at
    if head in (0xCA, 0xCB):
        raw, at = _cut(octets, at, 4 if head == 0xCA else 8)
        return struct.unpack(">f" if head == 0xCA else ">d", raw)[0], at
    if 0xCC <= head <= 0xD3:
        raw, at = _cut(octets, at, 1 << (head & 3))
        return int.from_bytes(raw, "big", signed=head >= 0xD0), at
    lengths = {0xC4: 1, 0xC5: 2, 0xC6: 4, 0xD9: 1, 0xDA: 2, 0xDB: 4, 0xDC: 2, 0xDD: 4, 0xDE: 2, 0xDF: 4}
    if head not in lengths:
        raise Refused("an extension, or no msgpack")
    raw, at = _cut(octets, at, lengths[head])
    length = int.from_bytes(raw, "big")
    if head in (0xC4, 0xC5, 0xC6):
        return _cut(octets, at, length)
    if head in (0xD9, 0xDA, 0xDB):
        return _text(*_cut(octets, at, length))
    return (_array if head in (0xDC, 0xDD) else _map)(octets, at, length, depth)


def _cut(octets, at, length):
    if at + length > len(octets):
        raise Refused("cut off")
    return octets[at : at + length], at + length


def _text(raw, at):
    try:
        return raw.decode("utf-8"), at
    except UnicodeDecodeError:
        raise Refused("a text that is not UTF-8") from None


def _array(octets, at, count, depth):
    if count > 4096:
        raise Refused("an array of more than 4096")
    entries = []
    for _ in range(count):
        entry, at = _value(octets, at, depth + 1)
        entries.append(entry)
    return entries, at


def _map(octets, at, count, depth):
    if count > 256:
        raise Refused("a map of more than 256")
    entries = {}
    for _ in range(count):
        key, at = _value(octets, at, depth + 1)
        if not isinstance(key, str):
            raise Refused("a key that is no text")
        entries[key], at = _value(octets, at, depth + 1)
    return entries, at


def pack(value):
    """Write a value in its shortest form; floats as float32."""
    if value is None or isinstance(value, bool):
        return {None: b"\xc0", False: b"\xc2", True: b"\xc3"}[value]
    if isinstance(value, float):
        return b"\xca" + struct.pack(">f", value)
    if isinstance(value, int):
        return _pack_integer(value)
    if isinstance(value, bytes):
        return _head(len(value), None, 0, (0xC4, 0xC5, 0xC6)) + value
    if isinstance(value, str):
        raw = value.encode()
        return _head(len(raw), 0xA0, 32, (0xD9, 0xDA, 0xDB)) + raw
    if isinstance(value, dict):
        inside = b"".join(pack(key) + pack(entry) for key, entry in value.items())
        return _head(len(value), 0x80, 16, (None, 0xDE, 0xDF)) + inside
    return _head(len(value), 0x90, 16, (None, 0xDC, 0xDD)) + b"".join(map(pack, value))


def _pack_integer(value):
    if -32 <= value <= 127:
        return struct.pack(">b", value) if value < 0 else bytes([value])
    low = 0xCC if value > 0 else 0xD0
    for power in range(4):
        bits = 8 << power
        if value < 1 << (bits if value > 0 else bits - 1) and value >= -(1 << (bits - 1)):
            return bytes([low + power]) + value.to_bytes(bits // 8, "big", signed=value < 0)
    raise Refused("an integer that is too large")


def _head(length, short, below, wide):
    if short is not None and length < below:
        return bytes([short | length])
    for head, width in zip(wide, (1, 2, 4), strict=True):
        if head is not None and length < 1 << (8 * width):
            return bytes([head]) + length.to_bytes(width, "big")
    raise Refused("too long")


class Body:
    """A map, and readers for its keys."""

    def __init__(self, value):
        if not isinstance(value, dict):
            raise Refused("a body is a map")
        self.value = value

    @classmethod
    def of(cls, octets, limit):
        """The body of a message of at most ``limit`` octets."""
        if len(octets) > limit:
            raise Refused("too large")
        return cls(unpack(octets))

    def get(self, key, default=None):
        """The value, or its default; nil is like absent."""
        value = self.value.get(key)
        if value is None:
            value = default
        if value is None:
            raise Refused(f"{key} is missing")
        return value

    def has(self, key):
        """Whether the key is there."""
        return self.value.get(key) is not None

    def integer(self, key, low=0, high=BIG_INTEGER - 1, default=None):
        """An integer in a range."""
        value = self.get(key, default)
        if type(value) is not int or not low <= value <= high:
            raise Refused(key)
        return value

    def number(self, key, low=-math.inf, high=math.inf, default=None):
        """A finite number in a range."""
        value = self.get(key, default)
        if type(value) not in (int, float) or (type(value) is int and abs(value) >= BIG_INTEGER):
            raise Refused(key)
        if not math.isfinite(value) or not low <= value <= high:
            raise Refused(key)
        return float(value)

    def text(self, key, most, default=None):
        """A text of at most so many characters."""
        value = self.get(key, default)
        if not isinstance(value, str) or len(value) > most:
            raise Refused(key)
        return value

    def octets(self, key, exactly=None, most=1 << 30, default=None):
        """An octet string."""
        value = self.get(key, default)
        if not isinstance(value, bytes) or len(value) > most:
            raise Refused(key)
        if exactly is not None and len(value) != exactly and self.has(key):
            raise Refused(key)
        return value

    def flag(self, key, default=None):
        """A boolean."""
        value = self.get(key, default)
        if not isinstance(value, bool):
            raise Refused(key)
        return value

    def numbers(self, key, most):
        """Named numbers."""
        body = Body(self.get(key, {}))
        if len(body.value) > most:
            raise Refused(key)
        return {name: body.number(name) for name in body.value}

    def optional(self, key, read):
        """What ``read(key)`` gives, or None."""
        return read(key) if self.has(key) else None


def read_version(body):
    """Keys e, n, g."""
    return {"epoch": body.integer("e"), "number": body.integer("n"), "digest": body.octets("g", 16)}


def fingerprint(tensors):
    """Of ``[[name, [dim, ...]], ...]``."""
    return hashlib.sha256(pack(tensors)).digest()[:8]


# Section 3: topics.

NAME = r"(?!\.)[A-Za-z0-9._-]{1,64}"
NUMBER = r"(?:0|[1-9][0-9]{0,14})"
ID = r"[a-z2-7]{26}"
BLOB = rf"(?P<address>{ID})\.(?P<chunk_bytes>{NUMBER})/(?P<index>{NUMBER})"
DEVICE = rf"(?P<device>{NAME})"
TREE = {
    "coordinator": "coordinator",
    "task": rf"task/(?P<task>{NAME})",
    "blob": rf"blob/{BLOB}",
    "begin": rf"up/{DEVICE}/begin/(?P<update_id>{ID})",
    "chunk": rf"up/{DEVICE}/chunk/(?P<update_id>{ID})/(?P<offset>{NUMBER})",
    "get": rf"up/{DEVICE}/get",
    "event": rf"up/{DEVICE}/event",
    "state": rf"state/{DEVICE}",
    "receipt": rf"down/{DEVICE}/update/(?P<update_id>{ID})",
    "command": rf"down/{DEVICE}/command",
    "task_for": rf"down/{DEVICE}/task",
    "blob_for": rf"down/{DEVICE}/blob/{BLOB}",
}


def base32(octets):
    """Lower case, without padding."""
    return base64.b32encode(octets).decode().rstrip("=").lower()


def read_topic(fleet, topic):
    """Its kind and parts."""
    for kind, pattern in TREE.items():
        match = re.fullmatch(rf"fl1/{re.escape(fleet)}/{pattern}", topic)
        if match is None:
            continue
        parts = {"kind": kind, **match.groupdict()}
        for name in ("chunk_bytes", "index", "offset"):
            if name in parts:
                parts[name] = int(parts[name])
        if "update_id" in parts:
            spelling = parts["update_id"]
            parts["update_id"] = base64.b32decode(spelling.upper() + "======")
            if base32(parts["update_id"]) != spelling:
                raise Refused("another spelling of an id")
        if parts.get("offset", 0) % 4096:
            raise Refused("an offset that is no multiple of 4096")
        return parts
    raise Refused("no topic")


# Section 5: envelopes.


def read_envelope(octets, limit):
    """Key id, signature, body: not verified."""
    if len(octets) > limit:
        raise Refused("too large")
    parts = unpack(octets)
    if not isinstance(parts, list) or len(parts) != 3 or not all(isinstance(part, bytes) for part in parts):
        raise Refused("no envelope")
    key_id, signature, body = parts
    if len(key_id) not in (0, 8) or len(signature) not in (0, 64):
        raise Refused("a key id or signature of another length")
    return {"key_id": key_id, "signature": signature, "body": body}


def key_id(public_key):
    """The name of a raw public key."""
    return hashlib.sha256(public_key).digest()[:8]


def signed_octets(context, body):
    """What a signature covers."""
    return context.encode() + b"\0" + body


# Section 6: the task manifest.


def read_task(octets):
    """The body of a task manifest."""
    body = Body.of(octets, 16 << 10)
    if body.text("denominator", 32) != "examples":
        raise Refused("denominator")
    return {
        "fleet": body.text("fleet", 64),
        "task": body.text("task", 64),
        "counter": body.integer("counter"),
        "term": body.integer("term"),
        "version": read_version(Body(body.get("version"))),
        "artifact": read_reference(Body(body.get("artifact"))),
        "weights": read_reference(Body(body.get("weights"))),
        "fingerprint": body.octets("layout", 8),
        "plan": read_plan(Body(body.get("plan"))),
        "codec": body.text("codec", 96),
        "pacing": read_pacing(Body(body.get("pacing"))),
        "max_examples": body.integer("max_examples", low=1),
        "denominator": "examples",
        "minimum_agent": body.text("agent", 32),
        "mirror": body.optional("mirror", lambda key: body.text(key, 512)),
    }


def read_plan(body):
    """How to train."""
    return {
        "epochs": body.integer("epochs", 1, 10_000),
        "batch_size": body.integer("batch", 1, 1 << 20),
        "lr": body.number("lr", 0),
        "momentum": body.number("momentum", 0, 1),
        "mu": body.number("mu", 0),
        "clip": body.number("clip", 0),
        "max_steps": body.integer("steps"),
        "deadline_s": body.number("deadline", 1, 604_800),
        "seed": 0,
    }


def read_pacing(body):
    """Who trains, and when."""
    return {
        "participation": body.number("share", 0, 1),
        "spread_s": body.number("spread", 0, 86_400),
        "by_lease": body.flag("lease"),
    }


def participates(device, digest, share):
    """The participation draw."""
    draw = hashlib.sha256(b"participate" + digest + device.encode()).digest()[:8]
    return int.from_bytes(draw, "big") < int(share * 2.0**64)


# Section 7: blobs.


def address(sha256):
    """The name of a blob, without its chunk size."""
    return base32(sha256[:16])


def read_reference(body, inner=False):
    """A blob reference."""
    sha256 = body.octets("h", 32)
    size = body.integer("s", high=1 << 31)
    chunk_bytes = body.integer("b", 4096, 122_880)
    count = max(1, (size + chunk_bytes - 1) // chunk_bytes)
    chunks, chunk_list = [], None
    if body.has("l"):
        if inner:
            raise Refused("a list of a list")
        chunk_list = read_reference(Body(body.get("l")), inner=True)
        if chunk_list["size"] != 32 * count:
            raise Refused("a list of another length")
    elif count > 1:
        joined = body.octets("c", 32 * count)
        chunks = [joined[at : at + 32] for at in range(0, len(joined), 32)]
    else:
        chunks = [sha256]
    return {
        "sha256": sha256,
        "size": size,
        "chunk_bytes": chunk_bytes,
        "chunks": chunks,
        "chunk_list": chunk_list,
    }


def cut(content, chunk_bytes):
    """The chunks of a blob."""
    return [content[at : at + chunk_bytes] for at in range(0, max(len(content), 1), chunk_bytes)]


def read_get(octets):
    """A request."""
    body = Body.of(octets, 4 << 10)
    return {"blob": body.text("b", 64, ""), "index": body.integer("i", default=0)}


# Section 8: presence.


def read_state(octets):
    """A device's birth or farewell."""
    body = Body.of(octets, 4 << 10)
    return {
        "online": body.flag("o"),
        "session": body.octets("s", 8),
        "incarnation": body.optional("i", lambda key: body.octets(key, 8)),
        "agent": body.text("a", 32, ""),
        "runtimes": [name for name in body.text("r", 128, "").split(",") if name],
        "samples": body.integer("x", default=0),
        "idle_reason": body.text("w", 256, ""),
        "seen": [body.integer("e", default=0), body.integer("c", default=0)],
    }


def read_coordinator(octets):
    """The coordinator's presence, a challenge or an answer."""
    body = Body.of(octets, 4 << 10)
    return {
        "session": body.octets("s", 8),
        "epoch": body.integer("e"),
        "term": body.integer("t"),
        "marker": body.octets("m", 32, default=b""),
        "challenge": body.octets("q", 8, default=b""),
        "rolled_back": body.flag("b", False),
    }


# Section 9: updates.


def read_begin(octets):
    """An update header, and the payload if it is there."""
    body = Body.of(octets, 64 << 10)
    header = {
        "incarnation": body.octets("i", 8),
        "base": read_version(body),
        "codec": body.text("c", 96),
        "size": body.integer("s", high=1 << 30),
        "sha256": body.octets("h", 32),
        "fingerprint": body.octets("f", 8),
        "num_examples": body.integer("x", low=1),
        "steps_done": body.integer("d"),
        "steps_planned": body.integer("p", low=1),
        "kind": body.text("k", 16, "plain"),
        "lease": body.optional("l", lambda key: body.octets(key, 8)),
        "metrics": read_metrics(Body(body.get("m", {}))),
        "payload": body.optional("b", lambda key: body.octets(key, most=61_440)),
    }
    payload = header["payload"]
    if header["steps_done"] > header["steps_planned"]:
        raise Refused("more done than planned")
    fits = payload is None or len(payload) == header["size"]
    if not fits or (payload is not None and hashlib.sha256(payload).digest() != header["sha256"]):
        raise Refused("another payload")
    return header


def read_metrics(body):
    """``before.*`` and ``after.*``."""
    return {
        f"{group}.{name}": value
        for group in ("before", "after")
        for name, value in body.numbers(group, 16).items()
    }


def write_header(header):
    """The header by the rules of section 4, without payload."""
    body = {
        "i": header["incarnation"],
        "e": header["base"]["epoch"],
        "n": header["base"]["number"],
        "g": header["base"]["digest"],
        "c": header["codec"],
        "s": header["size"],
        "h": header["sha256"],
        "f": header["fingerprint"],
        "x": header["num_examples"],
        "d": header["steps_done"],
        "p": header["steps_planned"],
    }
    if header["kind"] != "plain":
        body["k"] = header["kind"]
    if header["lease"] is not None:
        body["l"] = header["lease"]
    groups = {}
    for name, value in sorted(header["metrics"].items()):
        group, _, metric = name.partition(".")
        whole = value == int(value) and abs(value) < BIG_INTEGER
        groups.setdefault(group, {})[metric] = int(value) if whole else value
    if groups:
        body["m"] = groups
    return pack(body)


def update_hash(update_id, header):
    """What an update id is bound to."""
    return hashlib.sha256(update_id + write_header(header)).digest()


# Section 10: receipts.

REFUSALS = [
    "stale",
    "conflict",
    "already_counted",
    "unknown_base",
    "layout",
    "codec",
    "hash",
    "not_finite",
    "oversize",
    "malformed",
    "kind",
    "unknown_device",
]


def read_receipt(octets):
    """The coordinator's word."""
    body = Body.of(octets, 8 << 10)
    bounds = body.get("m", [])
    if body.text("s", 16) not in ("open", "later", "done", "refused"):
        raise Refused("state")
    if not isinstance(bounds, list) or len(bounds) % 2 or len(bounds) > 512:
        raise Refused("ranges")
    if not all(type(bound) is int and 0 <= bound < BIG_INTEGER for bound in bounds):
        raise Refused("ranges")
    if bounds != sorted(set(bounds)):
        raise Refused("ranges")
    return {
        "state": body.text("s", 16),
        "epoch": body.integer("e"),
        "term": body.integer("t"),
        "reason": body.text("r", 128, ""),
        "wait_s": body.number("w", 0, 604_800, 0),
        "missing": [bounds[at : at + 2] for at in range(0, len(bounds), 2)],
        "credit": body.integer("c", default=0),
    }


# Section 11: commands and events.


def read_command(octets):
    """The body of a command."""
    body = Body.of(octets, 4 << 10)
    command = {
        "kind": body.text("k", 16),
        "device": body.text("d", 64),
        "term": body.integer("t"),
        "sequence": body.integer("q"),
        "lease": body.optional("l", lambda key: body.octets(key, 8)),
        "version": body.optional("v", lambda key: read_version(Body(body.get(key)))),
        "deadline_s": body.number("w", 0, 604_800, 0),
        "evidence": body.flag("p", False),
    }
    if command["kind"] not in ("train", "pause", "resume", "restate"):
        raise Refused("kind")
    if command["kind"] == "train" and (command["lease"] is None or command["version"] is None):
        raise Refused("a lease without lease or version")
    return command


def read_event(octets):
    """What a device reports."""
    body = Body.of(octets, 32 << 10)
    if body.text("k", 16) not in ("error", "command", "counters", "evidence"):
        raise Refused("kind")
    return {
        "kind": body.text("k", 16),
        "message": body.text("t", 512, ""),
        "numbers": body.numbers("n", 32),
        "proof": body.octets("p", most=32 << 10, default=b""),
    }
