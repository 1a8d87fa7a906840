"""What is verified of a broker's certificate, at a real mosquitto, and what a wrong clock is forgiven."""

import queue
import ssl
import time

import pytest
from certificates import Authority, tls_mosquitto

from fl_io import tls
from fl_io.mqtt import BrokerAddress, MqttTransport
from fl_io.tls import TlsFiles, Trust
from fl_protocol.errors import ConfigError
from fl_protocol.transport import Connected, Disconnected

pytestmark = pytest.mark.mosquitto

PATIENCE_S = 20.0
OVER = (-60, -30)
TO_COME = (30, 60)


@pytest.fixture
def authority(tmp_path):
    """Whom this fleet's devices trust."""
    return Authority(tmp_path)


@pytest.fixture(params=[False, True], ids=["device", "coordinator"])
def first_word(request, tmp_path, broker_of, authority):
    """Connect once, either way, to a mosquitto with these files, trusting ``ca``; the first event."""

    def ask(files, ca):
        program = broker_of("mosquitto")._program
        events: queue.Queue = queue.Queue()
        with tls_mosquitto(program, tmp_path, files, authority.ca) as port:
            transport = MqttTransport(
                BrokerAddress.parse(f"mqtts://127.0.0.1:{port}"),
                "dated",
                tls=TlsFiles(ca=ca),
                paho=not request.param,
            )
            transport.start(events.put)
            try:
                return events.get(timeout=PATIENCE_S)
            finally:
                transport.stop()

    return ask


def test_a_good_certificate_needs_no_forgiveness(authority, first_word):
    """Nothing is wrong, and nothing is said to be."""
    assert first_word(authority.broker(), authority.ca) == Connected(False, "")


@pytest.mark.parametrize(
    ("days", "said"), [(OVER, "expired"), (TO_COME, "not yet valid")], ids=["clock-ahead", "clock-behind"]
)
def test_a_date_is_forgiven_to_a_pinned_authority(authority, first_word, days, said):
    """A clock of 2099 finds a certificate expired, one of 1970 not yet valid: at once it connects, and says
    what it overlooked."""
    event = first_word(authority.broker(days=days), authority.ca)
    assert isinstance(event, Connected), event
    assert said in event.date_error


@pytest.mark.parametrize("days", [(-30, 30), OVER, TO_COME], ids=["in-time", "clock-ahead", "clock-behind"])
@pytest.mark.parametrize("fault", ["foreign authority", "same name", "other host", "revoked"])
def test_every_other_fault_is_fatal_whatever_the_clock_says(tmp_path, authority, first_word, fault, days):
    """An authority that is not ours, one of the same name, another host's certificate, a revoked one: a date
    error besides opens no door."""
    ca = authority.ca
    if fault == "foreign authority":
        (tmp_path / "foreign").mkdir()
        files = Authority(tmp_path / "foreign", "stranger").broker(days=days)
    elif fault == "same name":
        (tmp_path / "double").mkdir()
        files = Authority(tmp_path / "double").broker(days=days)
    elif fault == "other host":
        files = authority.broker("broker.example", days=days)
    else:
        files = authority.broker(days=days)
        ca = authority.with_revocations(files.serial)
    event = first_word(files, ca)
    assert isinstance(event, Disconnected), event
    assert event.permanent
    assert "not trusted" in event.reason


def test_a_list_of_revocations_keeps_nobody_else_out(authority, first_word):
    """Also where it is out of date by this clock, which is a date again."""
    files = authority.broker()
    assert isinstance(first_word(files, authority.with_revocations(1)), Connected)
    event = first_word(files, authority.with_revocations(1, days=(-60, -30)))
    assert isinstance(event, Connected), event
    assert "expired" in event.date_error


def test_without_a_pinned_authority_a_date_is_not_forgiven(authority, first_word, monkeypatch):
    """Whoever of a hundred authorities signed it: the clock has to be right. It may be set soon, so the next
    attempt is not put off for long."""
    monkeypatch.setenv("SSL_CERT_FILE", str(authority.ca))
    event = first_word(authority.broker(days=OVER), None)
    assert isinstance(event, Disconnected), event
    assert "expired" in event.reason
    assert not event.permanent


def test_dates_are_looked_at_again_after_a_while(authority, monkeypatch):
    """The clock may have been set meanwhile: what was forgiven once is not forgiven for ever."""
    trust = Trust(TlsFiles(ca=authority.ca))
    error = ssl.SSLCertVerificationError("expired")
    error.verify_code, error.verify_message = 10, "certificate has expired"
    strict = trust.context
    assert trust.forgives(error)
    assert not trust.forgives(error)
    assert trust.context is not strict
    later = time.monotonic() + tls.ASK_AGAIN_S + 1
    monkeypatch.setattr("fl_io.tls.time.monotonic", lambda: later)
    assert (trust.context, trust.date_error) == (strict, "")
    error.verify_code = 20
    assert not trust.forgives(error)


def test_files_that_cannot_be_read_are_a_configuration_fault(tmp_path):
    """Said when it is made, not at the first connect at night."""
    with pytest.raises(ConfigError, match="TLS files cannot be used"):
        Trust(TlsFiles(ca=tmp_path / "none.pem"))


def test_a_list_of_revocations_is_never_lost_to_half_a_file(authority, tmp_path):
    """A copy is read at whatever octet it has come to: what was read before is used on, list and all, until
    the new file is whole. Taken out for good it is obeyed until the next start."""
    ca = tmp_path / "pinned.pem"
    whole = authority.with_revocations(authority.broker().serial).read_bytes()
    ca.write_bytes(whole)
    trust = Trust(TlsFiles(ca=ca))
    first, others = trust.context, 0
    for end in [*range(0, len(whole), 97), len(authority.ca.read_bytes())]:
        ca.write_bytes(whole[:end])
        fault = trust.reread()
        assert fault, f"cut at {end}"
        assert trust.context is first
        others += "list of revocations" in fault
    assert others >= 1
    ca.write_bytes(whole + b"\n")
    assert trust.reread() == ""
    assert trust.context is not first
    assert trust.context.verify_flags & ssl.VERIFY_CRL_CHECK_LEAF
    assert trust.context.cert_store_stats()["crl"] == 1
    ca.write_bytes(authority.ca.read_bytes())
    assert "list of revocations" in trust.reread()
    assert not Trust(TlsFiles(ca=ca)).context.verify_flags & ssl.VERIFY_CRL_CHECK_LEAF


def test_files_that_are_replaced_are_read_again_and_half_a_pair_is_not(authority, tmp_path):
    """As they are copied one after the other; what was read before is used on meanwhile."""
    old, new = authority.broker(), authority.broker()
    certificate, key = tmp_path / "device.pem", tmp_path / "device.key"
    certificate.write_bytes(old.certificate.read_bytes())
    key.write_bytes(old.key.read_bytes())
    trust = Trust(TlsFiles(ca=authority.ca, certificate=certificate, key=key))
    before = trust.context
    assert (trust.reread(), trust.context) == ("", before)
    key.write_bytes(new.key.read_bytes())
    assert "TLS files cannot be used" in trust.reread()
    certificate.unlink()
    assert "TLS files cannot be used" in trust.reread()
    assert trust.context is before
    certificate.write_bytes(new.certificate.read_bytes())
    assert trust.reread() == ""
    assert trust.context is not before
