"""Write the frozen codec vectors again. They pin the wire format: a change here is a change of protocol.

    python tests/vectors/make_codec_vectors.py

Inputs are small multiples of 1/64, so that even the encoder's sums are exact and its payloads can be pinned.
"""

import base64
import hashlib
import json
import struct
from pathlib import Path

import numpy as np

from fl_protocol.codec import codec_for, codec_seed, decode, decode_model, encode_model, model_size
from fl_protocol.codec.seed import stream_state
from fl_protocol.codec.streams import Stream
from fl_protocol.layout import TensorLayout

FOLDER = Path(__file__).parent / "codec"

SMALL = [["w", [4, 7]], ["b", [3]], ["s", []]]
ODD = [[f"t{size}", [size]] for size in (1, 2, 3, 31, 33, 63, 64, 65)]
DIGITS = [["hidden.weight", [64, 32]], ["hidden.bias", [32]], ["out.weight", [32, 10]], ["out.bias", [10]]]
EDGES = [[f"t{size}", [size]] for size in (1023, 1024, 1025)]
LONG = [["long", [65_536 + 1025]], ["short", [5]]]
ROWS = [["w", [10, 32]], ["narrow", [100, 3]], ["b", [255]], ["flat", [260]], ["k", [8, 3, 3, 5]], ["s", []]]
BUFFERED = [["w", [10, 32]], ["b", [3]], ["mean", [300], "buffer"], ["var", [300], "buffer"]]
FEW = [["w", [2]], ["stat", [8], "buffer"]]

LAYOUTS = {
    "float32": {"small": SMALL, "odd": ODD},
    "int8": {"small": SMALL, "odd": ODD, "digits": DIGITS},
    "eden(bits=1)": {"small": SMALL, "odd": ODD, "digits": DIGITS, "edges": EDGES, "long": LONG},
    "float16": {"small": SMALL, "odd": ODD},
    "eden(bits=2)": {"small": SMALL, "odd": ODD, "edges": EDGES},
    "eden(bits=4)": {"small": SMALL, "odd": ODD, "edges": EDGES},
    "eden(bits=2,keep=0.25)": {"small": SMALL, "odd": ODD, "edges": EDGES},
    "eden(bits=1,keep=0.25)": {"small": SMALL, "odd": ODD, "digits": DIGITS, "edges": EDGES, "long": LONG},
    "eden(bits=1,keep=0.9)": {"small": SMALL, "odd": ODD, "edges": EDGES},
    "sparse(bits=1,keep=0.5)": {"small": SMALL, "odd": ODD, "edges": EDGES},
    "sparse(bits=2,keep=0.05)": {"small": SMALL, "odd": ODD, "digits": DIGITS, "long": LONG},
    "sparse(bits=8,keep=0.25)": {"small": SMALL, "odd": ODD, "edges": EDGES},
}


def layout_of(tensors):
    """The layout of ``[[name, [dim, ...]], ...]``; the entry of a buffer ends with ``"buffer"``."""
    return TensorLayout.of(tensors)


def input_of(size, every=1):
    """``((40503 i + 12345) mod 251 - 125) / 64`` at each ``every``-th position i, else 0: float32[size]."""
    i = np.arange(size, dtype=np.int64)
    values = ((40503 * i + 12345) % 251 - 125).astype(np.float32) / np.float32(64)
    return np.where(i % every == 0, values, np.float32(0))


def octets_of(name, count):
    """``count`` octets that look random: sha256 of the name and a counter."""
    blocks = (hashlib.sha256(f"{name} {block}".encode()).digest() for block in range(count // 32 + 1))
    return b"".join(blocks)[:count]


def update_id_of(name):
    """The 16-byte update id of a case."""
    return hashlib.sha256(name.encode()).digest()[:16]


def text_of(payload):
    """Base64."""
    return base64.b64encode(payload).decode()


def case_of(codec, name, tensors, payload, every=None):
    """One case; ``every`` tells the input, None where the payload was made by hand."""
    update_id = update_id_of(name)
    layout = layout_of(tensors)
    decoded = decode(codec_for(codec), payload, layout, codec_seed(update_id)).tobytes()
    source = {} if every is None else {"input_every": every}
    return {
        "name": name,
        "layout": tensors,
        "update_id": update_id.hex(),
        **source,
        "payload": text_of(payload),
        "decoded_sha256": hashlib.sha256(decoded).hexdigest(),
        "decoded_first": decoded[:32].hex(),
    }


def encoded_case(codec, name, tensors, every=1):
    """A case that was encoded from the formula's input."""
    layout = layout_of(tensors)
    seed = codec_seed(update_id_of(name))
    payload = codec_for(codec).encode(input_of(layout.size, every), layout, seed)
    return case_of(codec, name, tensors, payload, every)


def scaled_payload(codec, layout, scales, name):
    """A payload made by hand: the given scales, then octets that look random and are never -128."""
    head = struct.pack(f"<{len(scales)}f", *scales)
    return head + octets_of(name, codec_for(codec).largest(layout) - len(head)).replace(b"\x80", b"\x7f")


def refused_case(name, tensors, payload):
    """A case that must be refused."""
    return {
        "name": name,
        "layout": tensors,
        "update_id": update_id_of(name).hex(),
        "payload": text_of(payload),
    }


def bad_numbers():
    """Float32 bit patterns that are no scale, by name."""
    patterns = {
        "nan": 0x7FC00000,
        "infinity": 0x7F800000,
        "negative": 0xBF800000,
        "negative zero": 0x80000000,
        "denormal": 0x00000001,
        "below 2^-100": 0x0D7FFFFF,
        "above 2^100": 0x71800001,
    }
    return {name: struct.pack("<I", bits) for name, bits in patterns.items()}


def refusals(codec):
    """Payloads of wrong length and with numbers out of bounds."""
    layout = layout_of(SMALL)
    good = codec_for(codec).encode(input_of(layout.size), layout, codec_seed(bytes(16)))
    if codec.startswith("sparse"):
        return [*sparse_refusals(codec, good), *buffer_refusals(codec)]
    lengths = {"empty": b"", "a byte short": good[:-1], "a byte long": good + b"\0"}
    numbers = {name: good[:4] + bits + good[8:] for name, bits in bad_numbers().items()}
    if codec == "float32":
        for fine in ("negative", "negative zero", "denormal", "below 2^-100"):
            del numbers[fine]
    if codec == "float16":
        halves = {"nan": 0x7E00, "signalling nan": 0xFC01, "infinity": 0x7C00, "negative infinity": 0xFC00}
        numbers = {name: good[:6] + float16_tail(bits) + good[8:] for name, bits in halves.items()}
    codes = {"code -128": good[:-1] + b"\x80"} if codec == "int8" else {}
    plain = [refused_case(name, SMALL, payload) for name, payload in {**lengths, **numbers, **codes}.items()]
    return [*plain, *buffer_refusals(codec)]


def sparse_refusals(codec, good):
    """Payloads that contradict themselves: the table of ``SMALL`` has three entries of nine octets."""
    entry = struct.Struct("<fHHB")
    scale, count, quotients, shift = entry.unpack_from(good)
    entries = {
        "too many elements": (scale, 1000, quotients, shift),
        "no elements": (scale, 0, quotients, shift),
        "no scale": (0.0, count, quotients, shift),
        "shift 16": (scale, count, quotients, 16),
        "too long a plane": (scale, count, quotients + 6, shift),
    }
    bad = {name: entry.pack(*fields) + good[9:] for name, fields in entries.items()}
    bad |= {f"scale {name}": bits + good[4:] for name, bits in bad_numbers().items()}
    bad |= {"empty": b"", "a byte short": good[:-1], "a byte long": good + b"\0"}
    bad["an element missing"] = good[:27] + bytes([good[27] & good[27] - 1]) + good[28:]
    bad["an element more"] = good[:27] + bytes([good[27] | good[27] + 1]) + good[28:]
    return [refused_case(name, SMALL, payload) for name, payload in bad.items()]


def float16_tail(*patterns):
    """Float16 bit patterns."""
    return struct.pack(f"<{len(patterns)}H", *patterns)


def buffer_refusals(codec):
    """Payloads whose buffers are missing, cut, too many, or not finite."""
    layout = layout_of(FEW)
    weights = codec_for(codec).encode(np.zeros(2, np.float32), layout.weights, codec_seed(bytes(16)))
    zeros = (0,) * 7
    bad = {
        "no buffers": b"",
        "a buffer short": float16_tail(*zeros),
        "a buffer long": float16_tail(*zeros, 0, 0),
        "infinite buffer": float16_tail(*zeros, 0x7C00),
        "infinite negative buffer": float16_tail(0xFC00, *zeros),
        "nan buffer": float16_tail(0x7E00, *zeros),
        "signalling nan buffer": float16_tail(*zeros, 0xFC01),
    }
    return [refused_case(name, FEW, weights + tail) for name, tail in bad.items()]


def buffer_cases(codec):
    """Buffers behind weights: encoded, and at the ends of float16's range."""
    layout = layout_of(FEW)
    weights = codec_for(codec).encode(
        np.ones(2, np.float32), layout.weights, codec_seed(update_id_of("ends"))
    )
    ends = float16_tail(0x0000, 0x8000, 0x7BFF, 0xFBFF, 0x0001, 0x8001, 0x3555, 0x03FF)
    return [encoded_case(codec, "buffers", BUFFERED), case_of(codec, "ends", FEW, weights + ends)]


def update_file(codec):
    """The vectors of one update codec."""
    cases = [encoded_case(codec, name, tensors) for name, tensors in LAYOUTS[codec].items()]
    cases += buffer_cases(codec)
    if codec == "float32":
        edges = struct.pack("<5f", 0.0, -0.0, 2.0**100, -(2.0**100), 2.0**-149)
        cases.append(case_of(codec, "extremes", [["x", [5]]], edges))
    elif codec == "float16":
        edges = float16_tail(0x0000, 0x8000, 0x7BFF, 0xFBFF, 0x0001, 0x83FF)
        cases.append(case_of(codec, "extremes", [["x", [6]]], edges))
    elif codec == "int8":
        scales = (0.0, 2.0**-100, 2.0**100, 1 / 3)
        tensors = [[f"t{i}", [40]] for i in range(len(scales))]
        payload = scaled_payload(codec, layout_of(tensors), scales, "extremes")
        cases.append(case_of(codec, "extremes", tensors, payload))
    elif codec.startswith("sparse"):
        cases += [
            encoded_case(codec, "sparse", EDGES, every=341),
            encoded_case(codec, "zeros", SMALL, every=99),
        ]
    elif codec in {"eden(bits=1)", "eden(bits=2)", "eden(bits=4)"}:
        cases.append(encoded_case(codec, "sparse", EDGES, every=341))
        scales = (0.0, 2.0**-100, 2.0**100, 1 / 3, 1e-5)
        tensors = [["w", [3, 1024]], ["b", [100]], ["s", []]]
        payload = scaled_payload(codec, layout_of(tensors), scales, "extremes")
        cases.append(case_of(codec, "extremes", tensors, payload))
    return {"codec": codec, "cases": cases, "refused": refusals(codec)}


def model_case(name, tensors, content, every=None):
    """One case of the model codec."""
    decoded = decode_model(content, layout_of(tensors)).tobytes()
    return {
        "name": name,
        "layout": tensors,
        **({} if every is None else {"input_every": every}),
        "payload": text_of(content),
        "decoded_sha256": hashlib.sha256(decoded).hexdigest(),
        "decoded_first": decoded[:32].hex(),
    }


def model_file():
    """The vectors of the model codec."""
    cases = []
    made = (("digits", DIGITS, 1), ("rows", ROWS, 1), ("zero rows", ROWS, 200), ("buffers", BUFFERED, 1))
    for name, tensors, every in made:
        layout = layout_of(tensors)
        cases.append(model_case(name, tensors, encode_model(input_of(layout.size, every), layout), every))
    tensors = [["w", [4, 64]], ["b", [2]]]
    head = struct.pack("<6f", 0.0, 2.0**-100, 2.0**100, 1 / 3, -0.0, 2.0**-149)
    octets = octets_of("extremes", model_size(layout_of(tensors)) - len(head)).replace(b"\x80", b"\x7f")
    cases.append(model_case("extremes", tensors, head + octets))
    good = head + octets
    bad = {
        "empty": b"",
        "a byte short": good[:-1],
        "a byte long": good + b"\0",
        "code -128": good[:-1] + b"\x80",
    }
    bad |= {f"scale {name}": good[:4] + bits + good[8:] for name, bits in bad_numbers().items()}
    bad |= {f"weight {name}": good[:16] + bad_numbers()[name] + good[20:] for name in ("nan", "above 2^100")}
    refused = [
        {"name": name, "layout": tensors, "payload": text_of(content)} for name, content in bad.items()
    ]
    return {"codec": "int8 rows", "cases": cases, "refused": refused}


def stream_file():
    """The first words of random streams."""
    streams = []
    for update_id in (bytes(16), bytes(range(16)), b"\xff" * 16):
        seed = codec_seed(update_id)
        for purpose in ("mask", "sign1", "sign2", "round"):
            state, increment = stream_state(seed, purpose.encode())
            streams.append(
                {
                    "update_id": update_id.hex(),
                    "seed": seed.hex(),
                    "purpose": purpose,
                    "state": f"{state:032x}",
                    "increment": f"{increment:032x}",
                    "words": [f"{int(word):016x}" for word in Stream(seed, purpose.encode()).words(5)],
                }
            )
    return {"streams": streams}


def main():
    """Write all files."""
    files = {
        "float32.json": update_file("float32"),
        "int8.json": update_file("int8"),
        "eden.json": update_file("eden(bits=1)"),
        "float16.json": update_file("float16"),
        "eden-2.json": update_file("eden(bits=2)"),
        "eden-4.json": update_file("eden(bits=4)"),
        "eden-2-keep-0.25.json": update_file("eden(bits=2,keep=0.25)"),
        "eden-keep-0.25.json": update_file("eden(bits=1,keep=0.25)"),
        "eden-keep-0.9.json": update_file("eden(bits=1,keep=0.9)"),
        "sparse-1.json": update_file("sparse(bits=1,keep=0.5)"),
        "sparse.json": update_file("sparse(bits=2,keep=0.05)"),
        "sparse-8.json": update_file("sparse(bits=8,keep=0.25)"),
        "model.json": model_file(),
        "stream.json": stream_file(),
    }
    FOLDER.mkdir(exist_ok=True)
    for name, content in files.items():
        (FOLDER / name).write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
