"""An independent reader of messages, written from docs/protocol.md alone.

Plain Python, standard library only; it imports nothing of Lichen's. Every reader takes octets and returns a
dict under the names of the vectors, or raises ``Refused``.
"""

import base64
import hashlib
import re

from bodies import BIG_INTEGER, Body, Refused, pack, unpack

# Section 4: versions and layouts.


def read_version(body):
    """Keys e, n, g."""
    return {"epoch": body.integer("e"), "number": body.integer("n"), "digest": body.octets("g", 16)}


def fingerprint(tensors):
    """Of ``[[name, [dim, ...]], ...]``, where a buffer's entry is ``[name, [dim, ...], "buffer"]``."""
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
        "version": 0,
    }


def read_pacing(body):
    """Who trains, and when."""
    return {
        "participation": body.number("share", 0, 1),
        "spread_s": body.number("spread", 0, 86_400),
        "by_lease": body.flag("lease"),
        "horizon": body.optional("horizon", body.integer),
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
        "life": body.optional("l", lambda key: body.octets(key, 4)),
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
        "runtime": body.text("r", 16, ""),
        "payload": body.optional("b", lambda key: body.octets(key, most=61_440)),
    }
    payload = header["payload"]
    if header["steps_done"] > header["steps_planned"]:
        raise Refused("more done than planned")
    if re.search(r"[^A-Za-z0-9._-]", header["runtime"]):
        raise Refused("r")
    fits = payload is None or len(payload) == header["size"]
    if not fits or (payload is not None and hashlib.sha256(payload).digest() != header["sha256"]):
        raise Refused("another payload")
    return header


def read_metrics(body):
    """``before.*`` and ``after.*``."""
    metrics = {
        f"{group}.{name}": value
        for group in ("before", "after")
        for name, value in body.numbers(group, 16).items()
    }
    if any(abs(value) > (2 - 2**-23) * 2**127 for value in metrics.values()):
        raise Refused("m")
    return metrics


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
    if header["runtime"]:
        body["r"] = header["runtime"]
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
