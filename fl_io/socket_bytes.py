"""How many bytes went through a TCP socket, as the kernel counts them (Linux ``TCP_INFO``)."""

import socket
import struct
from typing import Any

__all__ = ["socket_bytes"]

# Offsets in struct tcp_info of linux/tcp.h: tcpi_bytes_received 128, tcpi_bytes_sent 200 and
# tcpi_bytes_retrans 208, each u64 (kernel 4.19 and later).
_COUNTERS = struct.Struct("=128xQ64xQQ")


def socket_bytes(sock: Any) -> tuple[int, int] | None:
    """``(sent, received)`` bytes of a TCP connection's payload, retransmissions not counted.

    ``None`` where the system does not tell: another system than Linux, or a socket that is closed.
    """
    if not hasattr(socket, "TCP_INFO"):
        return None
    try:
        raw = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
    except (OSError, AttributeError):
        return None
    if len(raw) < _COUNTERS.size:
        return None
    received, sent, repeated = _COUNTERS.unpack_from(raw)
    return sent - repeated, received
