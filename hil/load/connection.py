"""A light MQTT 3.1.1 connection on asyncio, QoS 1: a few kilobytes each, where a paho client is a thread."""

import asyncio
from collections.abc import Callable, Sequence

from fl_io import mqtt_packets
from fl_io.mqtt_packets import Acknowledgement, Answer, ConnectOptions, PacketReader, Publication
from fl_protocol.errors import TransportError

__all__ = ["LightConnection"]


class LightConnection(asyncio.Protocol):
    """One connection; it connects once, and says how it ended.

    ``connected``, ``received`` and ``lost`` are called from the loop. Messages are acknowledged when
    ``received`` has returned. What is said in one turn of the loop goes out in one write.
    """

    def __init__(
        self,
        options: ConnectOptions,
        *,
        connected: Callable[[], None],
        received: Callable[[Publication], None],
        lost: Callable[[str], None],
    ) -> None:
        self._options = options
        self._connected = connected
        self._received = received
        self._lost = lost
        self._reader = PacketReader()
        self._transport: asyncio.WriteTransport | None = None
        self._out: list[bytes] = []
        self._last_id = 0
        self._reason = "the broker has closed the connection"
        self.under_way = 0
        """Publishes that the broker has not acknowledged."""

    def publish(self, topic: str, payload: bytes) -> None:
        """Publish at QoS 1."""
        self.under_way += 1
        self._say(mqtt_packets.publish(topic, payload, self._next_id()))

    def subscribe(self, filters: Sequence[str]) -> None:
        """Subscribe at QoS 1."""
        self._say(mqtt_packets.subscribe(self._next_id(), filters))

    def leave(self) -> None:
        """Say farewell and close."""
        self._say(mqtt_packets.DISCONNECT)
        self._flush()
        if self._transport is not None:
            self._transport.close()

    def sever(self) -> None:
        """Cut the connection: its will is spoken."""
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The socket is open."""
        assert isinstance(transport, asyncio.WriteTransport)
        self._transport = transport
        self._say(mqtt_packets.connect(self._options))

    def data_received(self, data: bytes) -> None:
        """Take in what has come."""
        try:
            for packet in self._reader.feed(data):
                if isinstance(packet, Publication):
                    self._received(packet)
                    if packet.packet_id:
                        self._say(mqtt_packets.puback(packet.packet_id))
                elif isinstance(packet, Acknowledgement):
                    self.under_way -= 1
                else:
                    self._answered(packet)
        except TransportError as error:
            self._reason = str(error)
            self.sever()

    def connection_lost(self, exc: Exception | None) -> None:
        """It is over."""
        self._transport = None
        self._lost(str(exc) if exc is not None else self._reason)

    def _answered(self, answer: Answer) -> None:
        if not answer.connects:
            return
        if answer.code:
            self._reason = f"the broker refused the connection with code {answer.code}"
            self.sever()
        else:
            self._connected()

    def _next_id(self) -> int:
        # So few are under way that ids of 65,535 turns ago are free again.
        self._last_id = self._last_id % mqtt_packets.MAX_PACKET_IDS + 1
        return self._last_id

    def _say(self, packet: bytes) -> None:
        if not self._out:
            asyncio.get_running_loop().call_soon(self._flush)
        self._out.append(packet)

    def _flush(self) -> None:
        if self._out and self._transport is not None and not self._transport.is_closing():
            self._transport.write(b"".join(self._out))
        self._out.clear()
