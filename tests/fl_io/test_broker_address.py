"""Where a broker is."""

import contextlib
import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fl_io.broker_address import BrokerAddress, reachable
from fl_protocol.errors import ConfigError, TransportError


@pytest.mark.parametrize(
    ("url", "scheme", "host", "port", "path"),
    [
        ("mqtt://broker", "mqtt", "broker", 1883, ""),
        ("mqtts://broker.example:8884", "mqtts", "broker.example", 8884, ""),
        ("ws://10.0.0.1/mqtt", "ws", "10.0.0.1", 80, "/mqtt"),
        ("wss://broker:9443/a/b", "wss", "broker", 9443, "/a/b"),
        ("mqtt://[::1]:1884", "mqtt", "::1", 1884, ""),
    ],
)
def test_a_url_names_scheme_host_port_and_path(url, scheme, host, port, path):
    """Ports have the usual defaults; an IPv6 address stands in brackets."""
    address = BrokerAddress.parse(url)
    assert (address.scheme, address.host, address.port, address.path) == (scheme, host, port, path)
    assert address.tls is (scheme in ("mqtts", "wss"))
    assert BrokerAddress.parse(str(address)) == address


def test_credentials_are_decoded_and_never_shown():
    """User and password may be percent-encoded; texts for people leave them out."""
    address = BrokerAddress.parse("mqtt://pi-07:p%40ss@broker")
    assert (address.username, address.password) == ("pi-07", "p@ss")
    assert "p@ss" not in str(address)
    assert "pi-07" not in str(address)


@pytest.mark.parametrize(
    "url",
    ["", "broker", "broker:1883", "http://broker", "mqtt://", "mqtt://b:99999", "mqtt://b:x", "mqtt://[::1"],
)
def test_what_is_no_broker_url_is_refused(url):
    """A wrong URL is a fault of the configuration, with a hint."""
    with pytest.raises(ConfigError):
        BrokerAddress.parse(url)


def test_a_refusal_does_not_repeat_the_password():
    """Logs and terminals outlive passwords."""
    with pytest.raises(ConfigError) as caught:
        BrokerAddress.parse("mqtt://user:secret@broker:99999")
    assert "secret" not in str(caught.value)


@given(st.text(max_size=60))
def test_any_text_is_an_address_or_a_config_error(text):
    """Nothing a person writes raises anything else."""
    with contextlib.suppress(ConfigError):
        BrokerAddress.parse(text)


def test_an_unreachable_broker_is_named_with_what_to_do():
    """A closed port: the message says where, the hint what to do."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with pytest.raises(TransportError, match=f"127.0.0.1:{port}") as caught:
        reachable(BrokerAddress(scheme="mqtt", host="127.0.0.1", port=port))
    assert caught.value.hint
    assert caught.value.retryable
