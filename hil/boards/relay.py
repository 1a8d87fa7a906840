"""``python -I relay.py PORT``: what comes on standard input goes to a port of loopback, and back.

QEMU starts one for each connection of an emulated machine. It imports nothing of this project, so that it
starts fast.
"""

import os
import socket
import sys
import threading

PIECE = 64 << 10


def main() -> int:
    """Relay until both sides are done; 1 where nobody listens."""
    try:
        far = socket.create_connection(("127.0.0.1", int(sys.argv[1])), 10.0)
    except OSError:
        return 1
    far.settimeout(None)
    far.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    up = threading.Thread(target=_up, args=(far,), daemon=True)
    up.start()
    while piece := _received(far):
        _write(piece)
    # The other side is gone: the machine must see it at once, whether it has more to say or not.
    return 0


def _up(far: socket.socket) -> None:
    try:
        while piece := os.read(0, PIECE):
            far.sendall(piece)
        far.shutdown(socket.SHUT_WR)
    except OSError:
        pass


def _received(far: socket.socket) -> bytes:
    try:
        return far.recv(PIECE)
    except OSError:
        return b""


def _write(piece: bytes) -> None:
    while piece:
        piece = piece[os.write(1, piece) :]


if __name__ == "__main__":
    sys.exit(main())
