"""The relay between an emulated machine and the broker's port."""

import socket
import subprocess
import sys
from pathlib import Path

from hil.boards import relay
from hil.mosquitto import free_ports

WORDS = [sys.executable, "-I", str(Path(relay.__file__))]


def test_what_comes_goes_to_the_port_and_back():
    """Both ways, more than a pipe holds; it ends when the far side does."""
    content = bytes(range(256)) * 2000
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(30)
        words = [*WORDS, str(server.getsockname()[1])]
        with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
            far, _ = server.accept()
            with far:
                far.settimeout(30)
                child.stdin.write(content)
                child.stdin.close()
                received = b""
                while piece := far.recv(1 << 16):
                    received += piece
                assert received == content
                far.sendall(b"well")
            assert child.stdout.read() == b"well"
            assert child.wait(30) == 0


def test_nobody_listens():
    """The machine sees a connection that is closed at once."""
    (port,) = free_ports(1)
    done = subprocess.run([*WORDS, str(port)], stdin=subprocess.DEVNULL, timeout=30, check=False)
    assert done.returncode == 1
