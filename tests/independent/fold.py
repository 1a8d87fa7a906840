"""A second implementation of section 8 of ``docs/protocol-codecs.md``: a version from updates.

Plain Python on the standard library and the modules beside it; slow, and element by element.
"""

import base64
import hashlib
import math
import struct

import bodies
import decoder


def rounded(number):
    """The nearest float32, halves to even."""
    return struct.unpack("<f", struct.pack("<f", number))[0]


# A float64 result of two float32 numbers, rounded to float32, is the float32 result: 53 >= 2 * 24 + 2.


def times(left, right):
    """Float32 product."""
    return rounded(left * right)


def plus(left, right):
    """Float32 sum."""
    return rounded(left + right)


def over(left, right):
    """Float32 quotient."""
    return rounded(left / right)


def floats_of(octets):
    """Little-endian float32 numbers."""
    return list(struct.unpack(f"<{len(octets) // 4}f", octets))


def read_state(content):
    """A state file as a dictionary."""
    assert content[:8] == b"LICHENV1"
    (length,) = struct.unpack_from("<I", content, 8)
    state = bodies.unpack(content[12 : 12 + length])
    assert state["s"] == []
    past, window = state.get("b", 0) * state.get("h", 0), state["w"]
    numbers = floats_of(content[12 + length : len(content) - 4 * window])
    state["master"], rest = numbers[: state["p"]], numbers[state["p"] :]
    state["past"], state["norms"] = rest[:past], rest[past:]
    state["witnesses"] = list(struct.unpack(f"<{window}I", content[len(content) - 4 * window :]))
    return state


def write_state(state):
    """The octets of a state file."""
    keys = ["e", "n", "f", "p", "s", "w", *(("b", "h") if "b" in state else ())]
    header = bodies.pack({key: state[key] for key in keys})
    numbers = [*state["master"], *state["past"], *state["norms"]]
    return b"".join(
        [
            b"LICHENV1" + struct.pack("<I", len(header)) + header,
            struct.pack(f"<{len(numbers)}f", *numbers),
            struct.pack(f"<{len(state['witnesses'])}I", *state["witnesses"]),
        ]
    )


def decoded(case, update):
    """The flat vector of one update."""
    seed = decoder.codec_seed(bytes.fromhex(update["update_id"]))
    return decoder.decode_update(update["codec"], case["layout"], seed, base64.b64decode(update["payload"]))


def scalar(text):
    """A journalled float32."""
    return floats_of(bytes.fromhex(text))[0]


def next_weights(weights, updates, rules):
    """``updates`` are ``(decoded, entry)``."""
    total, sum_n = [0.0] * len(weights), 0.0
    sums = [0.0, 0.0, 0.0]
    for values, entry in updates:
        n, s = scalar(entry["weight"]), scalar(entry["scale"])
        total = [plus(t, times(times(d, s), n)) for t, d in zip(total, values, strict=False)]
        sum_n = plus(sum_n, n)
        sums = [sums[0] + n, sums[1] + n * s, sums[2] + n * entry["staleness"]]
    if not sum_n:
        return [plus(w, 0.0) for w in weights]
    aggregate = [over(t, sum_n) for t in total]
    step = sums[1] / sums[0]
    bound = rules["damping"]["margin"] * math.pi / (2.0 * (sums[2] / sums[0]) + 1.0)
    if rules["damping"]["enabled"] and step > bound:
        aggregate = [times(a, rounded(bound / step)) for a in aggregate]
    rate = rounded(rules["server_lr"])
    return [plus(w, times(a, rate)) for w, a in zip(weights, aggregate, strict=True)]


def next_buffers(state, updates, sizes, limited):
    """``updates`` are ``(decoded, entry)``, ``sizes`` the elements of each buffer."""
    count = state.get("b", 0)
    first = state["p"] - count
    known = [state["past"][at * count : (at + 1) * count] for at in range(state.get("h", 0))]
    known.append(state["master"][first:])
    arrived = []
    for values, entry in updates:
        place = entry["base"] - state["n"] + len(known) - 1
        q = times(scalar(entry["weight"]), scalar(entry["scale"]))
        if place >= 0 and q > 0:
            arrived.append(([plus(d, b) for d, b in zip(values[first:], known[place], strict=True)], q))
    if limited and len(arrived) >= 4:
        bounds = limits_of([values for values, _ in arrived[:256]], sizes)
        arrived = [
            ([min(max(r, low), high) for r, (low, high) in zip(values, bounds, strict=True)], q)
            for values, q in arrived
        ]
    total, sum_q = [0.0] * count, 0.0
    for values, q in arrived:
        total = [plus(t, times(r, q)) for t, r in zip(total, values, strict=True)]
        sum_q = plus(sum_q, q)
    return [over(t, sum_q) for t in total] if sum_q else known[-1]


def median(values):
    """Half the sum of the two in the middle, or the one there is."""
    ordered = sorted(values)
    return times(plus(ordered[(len(ordered) - 1) // 2], ordered[len(ordered) // 2]), 0.5)


def limits_of(arrivals, sizes):
    """The lowest and highest value of each element; ``sizes`` are those of the tensors."""
    columns = list(zip(*arrivals, strict=True))
    middles = [median(column) for column in columns]
    widths = [
        median([abs(plus(r, -middle)) for r in column])
        for column, middle in zip(columns, middles, strict=True)
    ]
    bounds, start = [], 0
    for size in sizes:
        part = widths[start : start + size]
        usual = sorted(part)[size // 2]
        reaches = [times(8.0, max(width, usual)) for width in part]
        bounds += [
            (plus(middle, -reach), plus(middle, reach))
            for middle, reach in zip(middles[start : start + size], reaches, strict=True)
        ]
        start += size
    return bounds


def witness(device):
    """The first 4 octets of the sha256."""
    return int.from_bytes(hashlib.sha256(device.encode()).digest()[:4], "little")


def fold(case):
    """The octets of the next state file."""
    state = read_state(base64.b64decode(case["state"]))
    updates = [(decoded(case, entry), entry) for entry in case["updates"]]
    count = state.get("b", 0)
    first = state["p"] - count
    weights = next_weights(state["master"][:first], updates, case["rules"])
    sizes = decoder.sizes_of(entry for entry in case["layout"] if decoder.is_buffer(entry))
    buffers = next_buffers(state, updates, sizes, case["rules"]["clip"]["enabled"])
    after = dict(state, n=state["n"] + 1, master=weights + buffers)
    after["norms"] = (state["norms"] + [scalar(entry["norm"]) for _, entry in updates])[-64:]
    after["witnesses"] = (state["witnesses"] + [witness(entry["device"]) for _, entry in updates])[-64:]
    after["w"] = len(after["norms"])
    if count:
        after["past"] = (state["past"] + state["master"][first:])[-32 * count :]
        after["h"] = len(after["past"]) // count
    return write_state(after)
