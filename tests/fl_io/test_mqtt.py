"""Both kinds of connection, paho's and our own: what the contract suite cannot ask of every transport."""

import contextlib
import functools
import queue
import socket
import subprocess
import threading

import pytest

from fl_io.mqtt import BrokerAddress, MqttTransport, TlsFiles
from fl_io.socket_bytes import socket_bytes
from fl_protocol.errors import ConfigError
from fl_protocol.transport import Connected, Delivered, Disconnected, Received
from hil.link import LinkEmulator
from hil.link_profile import LinkProfile

PATIENCE_S = 20.0


@pytest.fixture(params=["paho", "many"], autouse=True)
def kind(request, monkeypatch):
    """Which connection a transport has."""
    transport = functools.partial(MqttTransport, paho=request.param != "many")
    monkeypatch.setitem(globals(), "MqttTransport", transport)
    return request.param


class Inbox:
    """Events in the order in which they came."""

    def __init__(self) -> None:
        self._queue: queue.Queue = queue.Queue()
        self.seen: list = []

    def __call__(self, event) -> None:
        self._queue.put(event)

    def next(self, kind):
        """The next event of a kind; others are passed by."""
        while True:
            event = self._queue.get(timeout=PATIENCE_S)
            self.seen.append(event)
            if isinstance(event, kind):
                return event


@contextlib.contextmanager
def connected(url: str, client_id: str, **options):
    """A transport that is connected, and its inbox."""
    transport, inbox = MqttTransport(BrokerAddress.parse(url), client_id, **options), Inbox()
    transport.start(inbox)
    try:
        inbox.next(Connected)
        yield transport, inbox
    finally:
        transport.stop()


@contextlib.contextmanager
def answering(reply: bytes):
    """A server that answers the first packet of each connection with ``reply``, then keeps silent."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        ended = threading.Event()

        def serve() -> None:
            while not ended.is_set():
                with contextlib.suppress(OSError):
                    peer, _ = server.accept()
                    with peer:
                        peer.recv(4096)
                        peer.sendall(reply)
                        while peer.recv(4096):
                            pass

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        try:
            yield f"mqtt://127.0.0.1:{server.getsockname()[1]}"
        finally:
            ended.set()
            with contextlib.suppress(OSError):
                server.shutdown(socket.SHUT_RDWR)
            thread.join(5)


@pytest.mark.parametrize(("code", "permanent"), [(1, False), (2, True), (3, False), (4, True), (5, True)])
def test_a_refused_connection_says_why_and_whether_for_good(code, permanent):
    """Wrong credentials, or an unwanted name, will not get better by asking again soon."""
    with answering(bytes([0x20, 2, 0, code])) as url:
        transport, inbox = MqttTransport(BrokerAddress.parse(url), "refused"), Inbox()
        transport.start(inbox)
        ended = inbox.next(Disconnected)
        transport.stop()
    assert ended.permanent is permanent
    assert "127.0.0.1" in ended.reason


@pytest.mark.mosquitto
def test_refused_credentials_at_a_real_broker_are_permanent(tmp_path, broker_of):
    """mosquitto with a password file: a wrong password ends in Disconnected(permanent=True)."""
    password_file = tmp_path / "passwords"
    tool = "mosquitto_passwd"
    subprocess.run([tool, "-b", "-c", str(password_file), "pi-07", "right"], check=True, capture_output=True)
    password_file.chmod(0o644)
    with mosquitto(broker_of, tmp_path, f"allow_anonymous false\npassword_file {password_file}\n") as port:
        transport, inbox = (
            MqttTransport(BrokerAddress.parse(f"mqtt://pi-07:wrong@127.0.0.1:{port}"), "pi"),
            Inbox(),
        )
        transport.start(inbox)
        ended = inbox.next(Disconnected)
        transport.stop()
        assert ended.permanent
        assert "uthoriz" in ended.reason or "password" in ended.reason
        with connected(f"mqtt://pi-07:right@127.0.0.1:{port}", "pi"):
            pass


@pytest.mark.parametrize("limit", ["message_size_limit 20000", "max_packet_size 20000"])
def test_an_oversize_message_dies_with_its_connection(tmp_path, broker_of, limit):
    """paho would send it again for ever; here the next connection starts with an empty window."""
    with (
        mosquitto(broker_of, tmp_path, f"allow_anonymous true\n{limit}\n") as port,
        connected(f"mqtt://127.0.0.1:{port}", "big") as (transport, inbox),
    ):
        transport.publish("t", bytes(100_000))
        # message_size_limit acknowledges it and throws it away; max_packet_size drops the connection.
        if "packet" in limit:
            inbox.next(Disconnected)
            inbox.next(Connected)
        else:
            inbox.next(Delivered)
        transport.subscribe(["t"])
        tokens = [transport.publish("t", bytes([number])) for number in range(5)]
        assert None not in tokens
        assert [inbox.next(Received).payload for _ in range(5)] == [bytes([number]) for number in range(5)]
        assert sum(isinstance(event, Disconnected) for event in inbox.seen) == ("packet" in limit)


@contextlib.contextmanager
def mosquitto(broker_of, folder, lines: str):
    """A mosquitto with a configuration of the test's own; its port."""
    program = broker_of("mosquitto")._program
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    configuration = folder / "own.conf"
    configuration.write_text(f"listener {port} 127.0.0.1\nuser root\n{lines}")
    process = subprocess.Popen(
        [program, "-c", str(configuration)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        for _ in range(500):
            with contextlib.suppress(OSError):
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            threading.Event().wait(0.02)
        yield port
    finally:
        process.terminate()
        process.wait(10)


def test_a_broker_that_does_not_answer_is_left(monkeypatch):
    """A TCP connection is not an answer: CONNECT is waited for a bounded time."""
    monkeypatch.setattr("fl_io.mqtt.ANSWER_TIMEOUT_S", 0.1)
    with answering(b"") as url:
        transport, inbox = MqttTransport(BrokerAddress.parse(url), "patient"), Inbox()
        transport.start(inbox)
        assert "CONNECT" in inbox.next(Disconnected).reason
        transport.stop()


def test_stop_ends_the_thread_even_while_connecting_in_vain():
    """Neither a back-off nor an unanswered CONNECT keeps a program from ending."""
    before = set(threading.enumerate())
    with answering(b"") as url:
        waiting = MqttTransport(BrokerAddress.parse(url), "waiting")
        waiting.start(lambda event: None)
        refused, inbox = MqttTransport(BrokerAddress.parse("mqtt://127.0.0.1:1"), "refused"), Inbox()
        refused.start(inbox)
        inbox.next(Disconnected)
        waiting.stop()
        refused.stop()
    assert not [thread for thread in set(threading.enumerate()) - before if thread.name.startswith("mqtt")]


def test_renew_ends_a_back_off():
    """Who knows that the network is back need not wait for the next attempt."""
    transport, inbox = MqttTransport(BrokerAddress.parse("mqtt://127.0.0.1:1"), "eager"), Inbox()
    transport.start(inbox)
    try:
        for _ in range(12):  # without it the back-off would sum up to minutes
            inbox.next(Disconnected)
            transport.renew()
    finally:
        transport.stop()


def test_a_connection_that_moved_something_resets_the_back_off(monkeypatch, broker_of):
    """A link that breaks every few seconds gets on; one that brings nothing is left for longer and longer."""
    longest: queue.Queue = queue.Queue()
    monkeypatch.setattr(
        "fl_io.mqtt.random.uniform", lambda low, high: longest.put(high) or low
    )  # the bound that the wait is drawn from; the wait itself is 0
    broker = BrokerAddress.parse(broker_of("amqtt").url)
    with (
        LinkEmulator(LinkProfile(), upstream=(broker.host, broker.port)) as link,
        connected(f"mqtt://127.0.0.1:{link.port}", "useful") as (transport, inbox),
    ):

        def break_it() -> float:
            link.reset()
            inbox.next(Connected)
            return longest.get(timeout=PATIENCE_S)

        assert [break_it(), break_it(), break_it()] == [1, 2, 4]
        assert transport.publish("t/useful", bytes(40_000)) is not None
        inbox.next(Delivered)
        assert [break_it(), break_it()] == [1, 2]


def test_a_receiver_that_raises_does_not_end_the_connection(broker, caplog):
    """An exception in a callback would kill paho's own thread while is_connected() stays true."""
    inbox = Inbox()

    def receive(event) -> None:
        inbox(event)
        if isinstance(event, Received) and event.payload == b"bad":
            raise KeyError("a bug")

    transport = MqttTransport(BrokerAddress.parse(broker), "raising")
    transport.start(receive)
    try:
        inbox.next(Connected)
        transport.subscribe(["t"])
        transport.publish("t", b"bad")
        transport.publish("t", b"good")
        assert [inbox.next(Received).payload for _ in range(2)] == [b"bad", b"good"]
    finally:
        transport.stop()
    assert "a bug" in caplog.text


def test_many_threads_may_publish_at_once(broker):
    """Packets of several threads do not run into each other, and nobody waits for anybody for ever."""
    count, size = 60, 40_000
    with connected(broker, "reader") as (reader, heard), connected(broker, "busy", window=8) as (busy, told):
        reader.subscribe(["bulk/+"])
        reader.publish("bulk/ready", b"")
        heard.next(Received)
        moved = threading.Event()

        def drain() -> None:
            for _ in range(4 * count):
                told.next(Delivered)
                moved.set()

        def send(name: int) -> None:
            for number in range(count):
                while busy.publish(f"bulk/{name}", bytes([name, number]) * (size // 2)) is None:
                    moved.wait(0.05)
                    moved.clear()

        threads = [threading.Thread(target=send, args=(name,), daemon=True) for name in range(4)]
        threads.append(threading.Thread(target=drain, daemon=True))
        for thread in threads:
            thread.start()
        received: dict[str, list[bytes]] = {}
        for _ in range(4 * count):
            event = heard.next(Received)
            received.setdefault(event.topic, []).append(event.payload)
        for thread in threads:
            thread.join(PATIENCE_S)
        assert not any(thread.is_alive() for thread in threads)
    for name in range(4):
        expected = [bytes([name, number]) * (size // 2) for number in range(count)]
        assert received[f"bulk/{name}"] == expected


def test_a_topic_that_is_not_text_is_passed_on_to_be_counted():
    """Left alone, an unacknowledged message with such a topic would come again for ever."""
    publish = bytes([0x32, 6]) + b"\x00\x01\xff" + b"\x00\x07" + b"x"
    with answering(b"\x20\x02\x00\x00" + publish) as url, connected(url, "curious") as (_, inbox):
        event = inbox.next(Received)
        assert (event.topic, event.payload) == ("", b"x")


def test_tls_files_that_cannot_be_read_are_a_configuration_fault(tmp_path):
    """Said when the transport is made, not at the first connect at night."""
    with pytest.raises(ConfigError, match="TLS"):
        MqttTransport(BrokerAddress.parse("mqtts://b"), "d", tls=TlsFiles(ca=tmp_path / "none.pem"))


def test_the_kernel_counts_what_went_through_a_socket():
    """Bytes sent and received agree with what both ends moved."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        near = socket.create_connection(server.getsockname())
        far, _ = server.accept()
        with near, far:
            near.sendall(bytes(100_001))
            left = 100_001
            while left:
                left -= len(far.recv(65536))
            far.sendall(bytes(77))
            assert near.recv(100) == bytes(77)
            assert socket_bytes(near) == (100_001, 77)
            assert socket_bytes(far) == (77, 100_001)
            far.shutdown(socket.SHUT_WR)
            assert near.recv(1) == b""
            assert socket_bytes(near) == (100_001, 77)
    assert socket_bytes(near) is None


def test_traffic_agrees_with_the_bytes_a_broker_saw():
    """CONNECT, one publish, and DISCONNECT, byte by byte."""
    received = bytearray()
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            peer, _ = server.accept()
            with peer:
                received.extend(peer.recv(4096))
                peer.sendall(b"\x20\x02\x00\x00")
                received.extend(peer.recv(4096))
                peer.sendall(b"\x40\x02\x00\x01")
                while chunk := peer.recv(4096):
                    received.extend(chunk)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        with connected(f"mqtt://127.0.0.1:{server.getsockname()[1]}", "exact") as (transport, inbox):
            transport.publish("topic", b"payload")
            inbox.next(Delivered)
        thread.join(PATIENCE_S)
    traffic = transport.traffic()
    assert traffic.received == 8
    assert traffic.sent == len(received)
    assert bytes(received).endswith(b"\xe0\x00")
