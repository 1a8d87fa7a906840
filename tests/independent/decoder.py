"""A second implementation of the wire format, written from ``docs/protocol-codecs.md`` alone.

It imports nothing of the project and no array library: whole numbers, ``hashlib`` and ``struct``. It is
slow and plain on purpose. Run it on folders of test vectors:

    python tests/independent/decoder.py tests/vectors/codec
"""

import base64
import hashlib
import json
import math
import re
import struct
import sys
from pathlib import Path

SEGMENT = 65_536
BLOCK = 1024
SMALLEST_BLOCK = 64
LEVELS = {1: [1], 2: [45, 151], 4: [13, 39, 66, 94, 126, 162, 207, 273]}
MULTIPLIER = 0x2360ED051FC65DA44385DF649FCCF645


class Refused(Exception):
    """A payload that a receiver must refuse."""


def parse_codec(text):
    """``name(option=number,...)`` as a name and a dictionary of numbers."""
    name, _, inside = text.replace(" ", "").partition("(")
    return name, {key: float(number) for key, number in re.findall(r"(\w+)=([^,)]+)", inside)}


def is_buffer(entry):
    """Whether an entry of ``[[name, [dim, ...]], ...]`` is ``[name, [dim, ...], "buffer"]``."""
    return entry[2:] == ["buffer"]


def sizes_of(entries):
    """The number of elements of each tensor."""
    return [math.prod(entry[1]) for entry in entries]


def codec_seed(update_id):
    """Section 3: the seed of an update."""
    return hashlib.sha256(b"codec" + update_id).digest()[:16]


def stream_start(seed, purpose):
    """Section 3: the state and increment that a stream starts from."""
    digest = hashlib.sha256(seed + purpose).digest()
    return int.from_bytes(digest[:16], "little"), int.from_bytes(digest[16:], "little") | 1


def stream(seed, purpose):
    """Section 3: the endless 64-bit words of one stream."""
    state, increment = stream_start(seed, purpose)
    while True:
        state = (state * MULTIPLIER + increment) % 2**128
        word = (state >> 64) ^ (state % 2**64)
        turn = state >> 122
        yield ((word >> turn) | (word << (64 - turn))) % 2**64


def signs(octets):
    """+1 for each bit 1 and -1 for each bit 0, lowest bit first."""
    return [1 if octet >> bit & 1 else -1 for octet in octets for bit in range(8)]


def draw_signs(words, count):
    """The next ``count`` signs, a multiple of 64, of a stream."""
    return signs(b"".join(next(words).to_bytes(8, "little") for _ in range(count // 64)))


def float32_product(code, scale):
    """The product rounded once to float32; a zero is +0 unless a factor is negative."""
    # code has at most 24 bits and scale 24: the float64 product is exact, and packing rounds it
    return struct.unpack("<f", struct.pack("<f", code * scale))[0]


def read_scales(octets):
    """Section 2: scales, each +0 or in [2^-100, 2^100]."""
    for (bits,) in struct.iter_unpack("<I", octets):
        if bits and not 0x0D800000 <= bits <= 0x71800000:
            raise Refused(f"scale bits {bits:08x}")
    return [scale for (scale,) in struct.iter_unpack("<f", octets)]


def read_values(octets):
    """Section 2: float32 values, finite and at most 2^100 in magnitude."""
    values = [value for (value,) in struct.iter_unpack("<f", octets)]
    if not all(abs(value) <= 2.0**100 for value in values):
        raise Refused("a value is not finite, or too large")
    return values


def read_halves(octets):
    """Section 2: float16 values, finite."""
    if any(bits & 0x7C00 == 0x7C00 for (bits,) in struct.iter_unpack("<H", octets)):
        raise Refused("a float16 value is not finite")
    return [value for (value,) in struct.iter_unpack("<e", octets)]


def read_codes(octets):
    """Section 2: 8-bit codes in [-127, 127]."""
    codes = list(struct.unpack(f"<{len(octets)}b", octets))
    if -128 in codes:
        raise Refused("a code is -128")
    return codes


def require_length(payload, length):
    """Section 1: any other length is refused."""
    if len(payload) != length:
        raise Refused(f"{len(payload)} bytes instead of {length}")


def decode_update(codec, layout, seed, payload):
    """Section 1: the flat vector that a payload stands for, weights and then buffers."""
    tail = 2 * sum(sizes_of(entry for entry in layout if is_buffer(entry)))
    if len(payload) < tail:
        raise Refused("no room for the buffers")
    sizes = sizes_of(entry for entry in layout if not is_buffer(entry))
    head, behind = payload[: len(payload) - tail], payload[len(payload) - tail :]
    return decode_weights(codec, sizes, seed, head) + read_halves(behind)


def decode_weights(codec, sizes, seed, payload):
    """Sections 4 to 6: the weights that a payload without buffers stands for."""
    name, options = parse_codec(codec)
    if name == "float32":
        require_length(payload, 4 * sum(sizes))
        return read_values(payload)
    if name == "float16":
        require_length(payload, 2 * sum(sizes))
        return read_halves(payload)
    if name == "int8":
        return decode_int8(sizes, payload)
    if name == "eden" and options.get("bits", 1) in LEVELS:
        return decode_eden(sizes, int(options.get("bits", 1)), options.get("keep", 1.0), seed, payload)
    if name == "sparse":
        return decode_sparse(sizes, int(options.get("bits", 2)), options.get("keep", 0.05), payload)
    raise ValueError(f"unknown codec {codec}")


def decode_int8(sizes, payload):
    """Section 5."""
    require_length(payload, 4 * len(sizes) + sum(sizes))
    scales = read_scales(payload[: 4 * len(sizes)])
    codes = iter(read_codes(payload[4 * len(sizes) :]))
    return [
        float32_product(next(codes), scale)
        for scale, size in zip(scales, sizes, strict=True)
        for _ in range(size)
    ]


def segments_of(sizes):
    """Section 6: the lengths of all segments in order."""
    return [min(SEGMENT, size - start) for size in sizes for start in range(0, size, SEGMENT)]


def blocks_of(kept):
    """Section 6: ``(values, elements)`` of each block of a segment with ``kept`` values."""
    blocks = [(BLOCK, BLOCK)] * (kept // BLOCK)
    rest = kept % BLOCK
    if rest:
        width = SMALLEST_BLOCK
        while width < rest:
            width *= 2
        blocks.append((rest, width))
    return blocks


def kept_positions(mask, size, kept):
    """Section 6: which positions of a segment travel."""
    words = [next(mask) for _ in range(math.ceil(size / 2))]
    keys = [words[i // 2] >> 32 * (i % 2) & 0xFFFFFFFF for i in range(size)]
    return sorted(sorted(range(size), key=lambda i: (keys[i], i))[:kept])


def hadamard(values):
    """Section 6: ``H values``, by butterflies."""
    values = list(values)
    half = 1
    while half < len(values):
        for start in range(0, len(values), 2 * half):
            for i in range(start, start + half):
                values[i], values[i + half] = values[i] + values[i + half], values[i] - values[i + half]
        half *= 2
    return values


def multiply(left, right):
    """Element by element."""
    return [a * b for a, b in zip(left, right, strict=True)]


def levels_of(octets, bits):
    """Section 6: the levels that packed codes stand for."""
    levels = [-level for level in reversed(LEVELS[bits])] + LEVELS[bits]
    return [levels[octet >> place & 2**bits - 1] for octet in octets for place in range(0, 8, bits)]


def decode_eden(sizes, bits, keep, seed, payload):
    """Section 6."""
    kept = [min(size, math.ceil(keep * size)) for size in segments_of(sizes)]
    blocks = [blocks_of(count) for count in kept]
    count = sum(map(len, blocks))
    require_length(payload, 4 * count + sum(width for segment in blocks for _, width in segment) * bits // 8)
    scales = iter(read_scales(payload[: 4 * count]))
    codes, position = payload[4 * count :], 0
    sign1, sign2, mask = (stream(seed, purpose) for purpose in (b"sign1", b"sign2", b"mask"))
    decoded = []
    for size, segment_kept, segment_blocks in zip(segments_of(sizes), kept, blocks, strict=True):
        values = []
        for used, width in segment_blocks:
            c = levels_of(codes[position : position + width * bits // 8], bits)
            position += width * bits // 8
            y = hadamard(multiply(draw_signs(sign2, width), hadamard(c)))
            x = multiply(draw_signs(sign1, width), y)
            scale = next(scales)
            values += [float32_product(number, scale) + 0.0 for number in x[:used]]
        segment = [0.0] * size
        positions = range(size) if keep == 1 else kept_positions(mask, size, segment_kept)
        for where, value in zip(positions, values, strict=True):
            segment[where] = value
        decoded += segment
    return decoded


def bits_of(octets):
    """The bits of octets, lowest first."""
    return [octet >> bit & 1 for octet in octets for bit in range(8)]


def decode_sparse(sizes, bits, keep, payload):
    """Section 9."""
    parts = segments_of(sizes)
    if len(payload) < 9 * len(parts) or len(payload) > most_of_sparse(parts, bits, keep):
        raise Refused("shorter than the table, or longer than the bound")
    table, at, decoded = [], 9 * len(parts), []
    for size, (scale, count, length, shift) in zip(
        parts, struct.iter_unpack("<4sHHB", payload[: 9 * len(parts)]), strict=True
    ):
        (number,) = read_scales(scale)
        if count > min(size, math.ceil(keep * size)) or shift > 15:
            raise Refused("more elements than are kept, or a shift above 15")
        if (count == 0) != (number == 0) or (not count and (length or shift)):
            raise Refused("an entry that is half empty")
        if length > math.ceil((count + (size - count >> shift)) / 8):
            raise Refused("a plane longer than any")
        table.append((size, number, count, length, shift))
    require_length(payload, at + sum(e[3] + math.ceil(e[2] * (e[4] + bits) / 8) for e in table))
    for size, scale, count, length, shift in table:
        plane = payload[at : at + length]
        at += length
        width = shift + bits
        codes = bits_of(payload[at : at + math.ceil(count * width / 8)])
        at += math.ceil(count * width / 8)
        ends = [place for place, bit in enumerate(bits_of(plane)) if bit]
        if len(ends) != count or (plane and not plane[-1]) or any(codes[count * width :]):
            raise Refused("planes that do not fit their entry")
        segment, position, before = [0.0] * size, -1, -1
        for i, end in enumerate(ends):
            number = [codes[place * count + i] for place in range(width)]
            remainder = sum(bit << place for place, bit in enumerate(number[:shift]))
            position += ((end - before - 1) << shift) + remainder + 1
            before = end
            if position >= size:
                raise Refused("a position behind the segment")
            level = 1 + sum(bit << place for place, bit in enumerate(number[shift + 1 :]))
            segment[position] = float32_product(-level if number[shift] else level, scale)
        decoded += segment
    return decoded


def most_of_sparse(parts, bits, keep):
    """Section 9: the longest payload."""
    total = 0
    for size in parts:
        count = min(size, math.ceil(keep * size))
        fewest = min(count * (1 + shift + bits) + (size - count >> shift) for shift in range(16))
        total += 9 + (fewest + 14) // 8
    return total


def rows_of(entry):
    """Section 7: the row lengths of a tensor, empty where it travels as float32."""
    shape = entry[1]
    size = math.prod(shape)
    if size < 256 or is_buffer(entry):
        return []
    inner = size // shape[0]
    row = inner * math.ceil(32 / inner)
    return [min(row, size - start) for start in range(0, size, row)]


def decode_model(layout, content):
    """Section 7: the flat vector of published weights."""
    numbers = sum(len(rows_of(entry)) or math.prod(entry[1]) for entry in layout)
    coded = sum(sum(rows_of(entry)) for entry in layout)
    require_length(content, 4 * numbers + coded)
    codes = iter(read_codes(content[4 * numbers :]))
    weights, position = [], 0
    for entry in layout:
        rows = rows_of(entry)
        end = position + 4 * (len(rows) or math.prod(entry[1]))
        if rows:
            for scale, row in zip(read_scales(content[position:end]), rows, strict=True):
                weights += [float32_product(next(codes), scale) for _ in range(row)]
        else:
            weights += read_values(content[position:end])
        position = end
    return weights


def decode_case(codec, case):
    """Decode one test vector to octets."""
    payload = base64.b64decode(case["payload"])
    if codec == "int8 rows":
        values = decode_model(case["layout"], payload)
    else:
        seed = codec_seed(bytes.fromhex(case["update_id"]))
        values = decode_update(codec, case["layout"], seed, payload)
    return struct.pack(f"<{len(values)}f", *values)


def faults_in_codec_vectors(content):
    """Every disagreement with a file of codec vectors, as sentences."""
    faults = []
    for case in content["cases"]:
        decoded = decode_case(content["codec"], case)
        if hashlib.sha256(decoded).hexdigest() != case["decoded_sha256"]:
            faults.append(f"{content['codec']}, {case['name']}: decoded values differ")
        if decoded[:32].hex() != case["decoded_first"]:
            faults.append(f"{content['codec']}, {case['name']}: the first values differ")
    for case in content["refused"]:
        try:
            decode_case(content["codec"], case)
        except Refused:
            continue
        faults.append(f"{content['codec']}, {case['name']}: accepted, must be refused")
    return faults


def faults_in_stream_vectors(content):
    """Every disagreement with the file of random streams, as sentences."""
    faults = []
    for case in content["streams"]:
        seed = codec_seed(bytes.fromhex(case["update_id"]))
        if seed.hex() != case["seed"]:
            faults.append(f"{case['update_id']}: the seed differs")
        words = stream(seed, case["purpose"].encode())
        if [f"{next(words):016x}" for _ in case["words"]] != case["words"]:
            faults.append(f"{case['update_id']}, {case['purpose']}: the words differ")
    return faults


def faults_in(path):
    """Every disagreement with one vector file."""
    content = json.loads(Path(path).read_text())
    return faults_in_stream_vectors(content) if "streams" in content else faults_in_codec_vectors(content)


def main(folders):
    """Check all vector files of the folders; the exit code is 1 if one does not hold."""
    paths = [path for folder in folders for path in sorted(Path(folder).glob("*.json"))]
    faults = [fault for path in paths for fault in faults_in(path)]
    sys.stdout.write("".join(f"{fault}\n" for fault in faults))
    sys.stdout.write(f"{len(paths)} files, {len(faults)} faults\n")
    return 1 if faults or not paths else 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
