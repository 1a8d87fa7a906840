"""A board that is reached over SSH: this machine itself, by an sshd of our own on loopback."""

import getpass
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from hil.boards.patience import Patience
from hil.mosquitto import free_ports
from hil.processes import ManagedProcess

SSHD = shutil.which("sshd") or shutil.which("sshd", path="/usr/sbin:/usr/local/sbin")


def make_key(path: Path) -> Path:
    """A key pair without a passphrase."""
    words = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(path)]
    subprocess.run(words, check=True, timeout=30, stdin=subprocess.DEVNULL)
    return path


@pytest.fixture
def ssh_boards(tmp_path):
    """A boards.toml with the board ``desk``, whose power is kill -9 of all that its agent is; sshd runs."""
    if SSHD is None or shutil.which("ssh") is None:
        pytest.skip("sshd is not installed")
    if Path("/run").exists() and not Path("/run/sshd").exists():
        try:
            Path("/run/sshd").mkdir()  # where Debian's sshd locks itself in before it knows anybody
        except OSError:
            pytest.skip("sshd is not installed: it has never run here")
    home = tmp_path / "sshd"
    home.mkdir()
    key, host_key = make_key(home / "user"), make_key(home / "host")
    (home / "authorized").write_text(key.with_suffix(".pub").read_text())
    (port,) = free_ports(1)
    lines = [
        f"Port {port}",
        "ListenAddress 127.0.0.1",
        f"HostKey {host_key}",
        f"AuthorizedKeysFile {home / 'authorized'}",
        "PasswordAuthentication no",
        "PermitRootLogin prohibit-password",
        "StrictModes no",
        "UsePAM no",
        "PidFile none",
    ]
    (home / "sshd_config").write_text("\n".join(lines) + "\n")
    words = [SSHD, "-D", "-e", "-f", str(home / "sshd_config")]
    server = ManagedProcess("sshd", words, home / "sshd.log", folder=home)
    server.start()
    options = ["-p", str(port), "-i", str(key), "-o", "StrictHostKeyChecking=no", "-o", "LogLevel=ERROR"]
    options += ["-o", f"UserKnownHostsFile={home / 'known'}", "-o", "IdentitiesOnly=yes"]
    there = ["ssh", *options, f"{getpass.getuser()}@127.0.0.1", "true"]

    def answers() -> bool:
        assert server.running, server.last_words()
        return subprocess.run(there, capture_output=True, timeout=30, check=False).returncode == 0

    try:
        Patience(lambda sentence: None).until("sshd answers", answers, within_s=30, why=server.last_words)
        file = tmp_path / "boards.toml"
        folder = tmp_path / "far"
        # A shell that is asked to end all of a session, the worker's own session included.
        kill = f"for p in $(cat {folder}/agent.pid); do pkill -KILL -P $p; kill -KILL -$p; done"
        file.write_text(
            f'[boards.desk]\nssh = "{getpass.getuser()}@127.0.0.1"\noptions = {options!r}\n'.replace("'", '"')
            + f'agent = "{sys.executable} -m edge_agent"\n'
            f'python = "{sys.executable}"\n'
            f'folder = "{folder}"\n'
            f"power_off = '{kill}'\n"
            'power_on = "true"\n'
            "slowness = 2.0\n"
        )
        yield file
    finally:
        server.kill_family()
