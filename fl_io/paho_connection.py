"""A broker connection by paho-mqtt, kept on a short leash.

paho's own reconnection and queue are not used. Its callbacks run under its locks, and an exception in one
would end its network thread while ``is_connected()`` stays true: here they only note what happened, and
the loop, which is ours, passes it on afterwards.
"""

from collections.abc import Sequence
from typing import Any

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion

from fl_io.broker_address import CONNECT_TIMEOUT_S
from fl_io.connection import BrokerConnection, ConnectionTerms
from fl_protocol.transport import Connected, Delivered, Received, Will

__all__ = ["PahoConnection"]


class PahoConnection(BrokerConnection):
    """One paho client; over TCP, TLS or websockets."""

    def __init__(self, terms: ConnectionTerms, generation: int) -> None:
        super().__init__(terms, generation)
        self._sizes: dict[int, int] = {}
        self._under_way = 0
        self._client = client = paho.Client(
            CallbackAPIVersion.VERSION2,
            client_id=terms.client_id,
            clean_session=terms.clean,
            protocol=paho.MQTTv311,
            transport="websockets" if terms.address.scheme.startswith("ws") else "tcp",
            reconnect_on_failure=False,
            manual_ack=terms.manual_ack,
        )
        client.connect_timeout = CONNECT_TIMEOUT_S
        client.max_inflight_messages_set(terms.window)
        client.max_queued_messages_set(4 * terms.window)
        client.on_socket_open = lambda client, userdata, sock: self.hold(sock.fileno())
        client.on_socket_close = lambda client, userdata, sock: self.let_go()
        # paho writes to the socket in the caller's thread, racing with the network thread, unless it
        # believes in an event loop that does; the loop finds the packet in its queue.
        client.on_socket_register_write = lambda client, userdata, sock: None
        client.on_connect = self._on_connect
        client.on_message = self._on_message
        client.on_publish = self._on_publish

    def open(self, will: Will | None) -> None:
        """Connect; raises OSError, ValueError."""
        address, client = self.terms.address, self._client
        if self.terms.trust is not None:
            client.tls_set_context(self.terms.trust.context)
        if address.username:
            client.username_pw_set(address.username, address.password or None)
        if address.path:
            client.ws_set_options(path=address.path)
        if will is not None:
            client.will_set(will.topic, will.payload, qos=1, retain=False)
        client.connect(address.host, address.port, self.terms.keepalive_s)

    def serve(self, timeout_s: float) -> str | None:
        """Turn paho's loop once."""
        code = self._client.loop(timeout_s)
        return None if code == paho.MQTT_ERR_SUCCESS else paho.error_string(code)

    def publish(self, topic: str, payload: bytes, retain: bool) -> int | None:
        """Publish if the window has room. paho is called without our lock: it calls back under its own."""
        with self.lock:
            if not self.accepted or self._under_way >= self.terms.window:
                return None
            self._under_way += 1
        message = self._client.publish(topic, payload, qos=1, retain=retain)
        if message.rc != paho.MQTT_ERR_SUCCESS:
            with self.lock:
                self._under_way -= 1
            return None
        self._sizes[message.mid] = len(payload)
        return self.first_token + message.mid

    def acknowledge(self, token: int) -> None:
        """Acknowledge a message of this connection."""
        if packet_id := self.packet_id(token):
            self._client.ack(packet_id, 1)

    def subscribe(self, filters: Sequence[str]) -> None:
        """Subscribe at QoS 1."""
        self._client.subscribe([(pattern, 1) for pattern in filters])

    def unsubscribe(self, filters: Sequence[str]) -> None:
        """Unsubscribe."""
        self._client.unsubscribe(list(filters))

    def disconnect(self) -> None:
        """Say farewell."""
        self._client.disconnect()

    def _on_connect(
        self, client: paho.Client, userdata: Any, flags: Any, reason: Any, properties: Any
    ) -> None:
        if reason.is_failure:
            self.refusal = str(reason)
        else:
            self.accepted = True
            self.noted.append(Connected(bool(flags.session_present), self.date_error))

    def _on_message(self, client: paho.Client, userdata: Any, message: paho.MQTTMessage) -> None:
        try:
            topic = message.topic
        except UnicodeDecodeError:
            # Passed on, to be counted and acknowledged: left alone it would come again for ever.
            topic = ""
        token = self.first_token + message.mid
        self.moved += len(message.payload)
        self.noted.append(Received(topic, bytes(message.payload), message.retain, token))

    def _on_publish(self, client: paho.Client, userdata: Any, mid: int, reason: Any, properties: Any) -> None:
        with self.lock:
            self._under_way -= 1
        # The acknowledgement may be quicker than the note of the size, which is then left for the next.
        self.moved += self._sizes.pop(mid, 0)
        self.noted.append(Delivered(self.first_token + mid))
