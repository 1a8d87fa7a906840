"""How many bytes went through a TCP socket, as the kernel counts them (Linux ``TCP_INFO``)."""

import socket
import struct
from typing import Any

__all__ = ["socket_bytes"]

# Offsets in struct tcp_info of linux/tcp.h: tcpi_state 0, u8; tcpi_bytes_received 128, tcpi_bytes_sent 200
# and tcpi_bytes_retrans 208, each u64 (kernel 4.19 and later).
_COUNTERS = struct.Struct("=B127xQ64xQQ")
# States of linux/tcp_states.h after the other side's FIN, which the kernel counts as a byte received:
# CLOSE_WAIT, LAST_ACK, CLOSING. A socket that is wholly closed does not tell whether by FIN or by reset.
_ENDED_BY_PEER = frozenset({8, 9, 11})


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
    state, received, sent, repeated = _COUNTERS.unpack_from(raw)
    return sent - repeated, received - (state in _ENDED_BY_PEER)
