"""Ed25519 verification in plain Python, from RFC 8032, section 5.1. Slow, and only for public values."""

import hashlib

P = 2**255 - 19
ORDER = 2**252 + 27742317777372353535851937790883648493
D = -121665 * pow(121666, -1, P) % P
ROOT = pow(2, (P - 1) // 4, P)
BASE_Y = 4 * pow(5, -1, P) % P


def verify(public_key, signature, message):
    """Whether a signature holds."""
    if len(signature) != 64:
        return False
    key, commitment = _point(public_key), _point(signature[:32])
    scalar = int.from_bytes(signature[32:], "little")
    if key is None or commitment is None or scalar >= ORDER:
        return False
    digest = hashlib.sha512(signature[:32] + public_key + message).digest()
    challenge = int.from_bytes(digest, "little") % ORDER
    base = (_x_of(BASE_Y, 0), BASE_Y)
    return _multiply(base, scalar) == _add(commitment, _multiply(key, challenge))


def _point(octets):
    number = int.from_bytes(octets, "little")
    y, sign = number & ((1 << 255) - 1), number >> 255
    x = _x_of(y, sign) if y < P else None
    return None if x is None else (x, y)


def _x_of(y, sign):
    square = (y * y - 1) * pow(D * y * y + 1, -1, P) % P
    x = pow(square, (P + 3) // 8, P)
    if x * x % P != square:
        x = x * ROOT % P
    if x * x % P != square or (x == 0 and sign):
        return None
    return P - x if x & 1 != sign else x


def _add(first, second):
    (x1, y1), (x2, y2) = first, second
    mixed = D * x1 * x2 * y1 * y2 % P
    x = (x1 * y2 + x2 * y1) * pow(1 + mixed, -1, P)
    y = (y1 * y2 + x1 * x2) * pow(1 - mixed, -1, P)
    return x % P, y % P


def _multiply(point, scalar):
    result = (0, 1)
    while scalar:
        if scalar & 1:
            result = _add(result, point)
        point = _add(point, point)
        scalar >>= 1
    return result
