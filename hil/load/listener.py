"""An empty subscriber in a process of its own: it counts and acknowledges, and does nothing else."""

import multiprocessing
import queue
import socket
from types import TracebackType
from typing import Any

from fl_io import mqtt_packets
from fl_io.broker_address import BrokerAddress
from fl_io.mqtt import MqttTransport
from fl_io.mqtt_packets import ConnectOptions, PacketReader, Publication
from fl_protocol.errors import LichenError
from fl_protocol.transport import Connected, Received, TransportEvent

__all__ = ["Listener"]

START_S = 30.0
READ_BYTES = 256 << 10


class Listener:
    """Subscribes to ``pattern`` at QoS 1 while the context lasts; ``count`` are the messages so far.

    A bare socket, which is as quick as a subscriber in Python can be, or an ``ordinary`` client: paho.

    Raises:
        LichenError: it has no subscription after 30 s.
    """

    def __init__(self, address: BrokerAddress, pattern: str, *, ordinary: bool = False) -> None:
        context = multiprocessing.get_context("spawn")
        self._count: Any = context.Value("q", 0, lock=False)
        self._ready = context.Event()
        self._process = context.Process(
            target=_listen_by_paho if ordinary else _listen,
            args=(address, pattern, self._count, self._ready),
            daemon=True,
        )

    @property
    def count(self) -> int:
        """Messages so far."""
        return int(self._count.value)

    def __enter__(self) -> "Listener":
        self._process.start()
        if not self._ready.wait(START_S):
            self._process.kill()
            raise LichenError("the empty subscriber got no subscription")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.join()


def _listen(address: BrokerAddress, pattern: str, count: Any, ready: Any) -> None:
    reader = PacketReader()
    with socket.create_connection((address.host, address.port)) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.sendall(mqtt_packets.connect(ConnectOptions(client_id="listener", keepalive_s=0)))
        connection.sendall(mqtt_packets.subscribe(1, [pattern]))
        while received := connection.recv(READ_BYTES):
            answers = []
            for packet in reader.feed(received):
                if isinstance(packet, Publication):
                    answers.append(mqtt_packets.puback(packet.packet_id))
                elif not getattr(packet, "connects", True):
                    ready.set()
            if answers:
                connection.sendall(b"".join(answers))
                count.value += len(answers)


def _listen_by_paho(address: BrokerAddress, pattern: str, count: Any, ready: Any) -> None:
    probe = pattern.replace("#", "probe")
    events: queue.SimpleQueue[TransportEvent] = queue.SimpleQueue()
    transport = MqttTransport(address, "listener")
    transport.start(events.put)
    while True:
        event = events.get()
        if isinstance(event, Connected):
            transport.subscribe([pattern])
            transport.publish(probe, b"")
        elif isinstance(event, Received) and event.topic == probe:
            ready.set()
        elif isinstance(event, Received):
            count.value += 1
