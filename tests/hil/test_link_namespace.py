"""The link of packets, with real sockets at both ends."""

import random
import re
import socket
import subprocess
import sys

import pytest

from fl_protocol.errors import ConfigError, LichenError
from hil import link_namespace
from hil.link_namespace import NamespaceLink
from hil.link_profile import LinkDirection, LinkProfile, Outage

TIMEOUT_S = 30.0
SENDER = """
import random, socket, sys
content = random.Random(1).randbytes(int(sys.argv[2]))
with socket.create_connection((sys.argv[1], int(sys.argv[3])), timeout=30) as end:
    end.sendall(content)
    end.shutdown(socket.SHUT_WR)
    end.recv(1)
"""


@pytest.fixture
def join():
    """Make links; skip where this machine cannot."""
    links: list[NamespaceLink] = []

    def make(profile: LinkProfile, *, seed: int = 0) -> NamespaceLink:
        link = NamespaceLink(profile, seed=seed)
        try:
            links.append(link.start())
        except ConfigError as error:
            pytest.skip(str(error))
        return link

    yield make
    for link in links:
        link.stop()


def received(link: NamespaceLink, size: int) -> bytes:
    """What arrives here when a process in the namespace sends ``size`` bytes over TCP."""
    with socket.create_server((link.address, 0)) as server:
        server.settimeout(TIMEOUT_S)
        words = [sys.executable, "-c", SENDER, link.address, str(size), str(server.getsockname()[1])]
        with subprocess.Popen(link.within(words)) as child:
            end, peer = server.accept()
            assert peer[0] == link.device_address
            content = b""
            with end:
                end.settimeout(TIMEOUT_S)
                while piece := end.recv(65536):
                    content += piece
            assert child.wait(TIMEOUT_S) == 0
    return content


def test_tcp_survives_what_the_link_loses(join):
    """Three packets in a hundred are lost for real: TCP sends them again, and every byte arrives."""
    line = LinkDirection(delay_ms=2, jitter_ms=2, loss=0.03)
    link = join(LinkProfile(up=line, down=line), seed=5)
    content = received(link, 500_000)
    assert len(content) == 500_000
    counts = link.counts
    assert counts.lost_up >= 5
    assert counts.bytes_up > 500_000
    assert content == random.Random(1).randbytes(500_000)


def test_a_slow_link_drops_what_its_queue_does_not_hold(join):
    """More is sent at once than the line takes: the queue is bounded, and TCP finds its pace."""
    link = join(LinkProfile(up=LinkDirection(rate_kbps=20_000), down=LinkDirection()))
    assert len(received(link, 1_000_000)) == 1_000_000
    assert link.counts.bytes_up >= 1_000_000


def test_in_a_blackout_nothing_passes_and_nobody_is_told(join):
    """No reset, no refusal: packets vanish; after it they pass again."""
    link = join(LinkProfile())
    link.pause()
    assert subprocess.run(connect(link), capture_output=True, check=False).returncode != 0
    lost = link.counts.lost_up
    assert lost > 0
    link.resume()
    assert len(received(link, 1000)) == 1000
    assert link.counts.lost_up == lost


def connect(link: NamespaceLink) -> list[str]:
    """A process in the namespace that tries for half a second to connect."""
    code = f"import socket; socket.create_connection(({link.address!r}, 9), timeout=0.5)"
    return link.within([sys.executable, "-c", code])


def test_outages_come_by_themselves(join):
    """The schedule of a profile: away for most of the time, and TCP gets through all the same."""
    line = LinkDirection(rate_kbps=4000)
    link = join(LinkProfile(up=line, outage=Outage(every_s=0.4, lasting_s=0.2)))
    assert len(received(link, 200_000)) == 200_000
    assert link.counts.lost_up > 0


def test_it_says_why_it_cannot_run(monkeypatch, tmp_path):
    """Without rights, without the device, without the tools: a sentence, and nothing is left behind."""
    link = NamespaceLink(LinkProfile())
    with pytest.raises(LichenError, match="does not run"):
        link.pause()
    with monkeypatch.context() as patch:
        patch.setattr("os.geteuid", lambda: 1000)
        with pytest.raises(ConfigError, match="needs root"):
            link.start()
    monkeypatch.setattr("os.geteuid", lambda: 0)
    with monkeypatch.context() as patch:
        patch.setattr(link_namespace, "_TUN", tmp_path / "tun")
        with pytest.raises(ConfigError, match=re.escape(f"needs {tmp_path / 'tun'}")):
            link.start()
    (tmp_path / "tun").touch()
    monkeypatch.setattr(link_namespace, "_TUN", tmp_path / "tun")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match="iproute2"):
        link.start()
