"""The coordinator's signing key."""

import pytest

from broker_coordinator.keys import open_key, without_key
from fl_protocol.errors import ConfigError
from fl_protocol.signed import TASK_CONTEXT, open_envelope, seal


def test_a_key_is_made_once_and_kept(tmp_path):
    """Readable by its owner only; the public text is beside it."""
    first, second = open_key(tmp_path), open_key(tmp_path)
    assert (first.fresh, second.fresh) == (True, False)
    assert first.public_key == second.public_key
    assert (tmp_path / "coordinator.key").stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "coordinator.pub").read_text() == first.public_key + "\n"
    envelope = seal(TASK_CONTEXT, b"body", first.sign)
    assert open_envelope(TASK_CONTEXT, envelope, second.verify, limit=1000) == b"body"


def test_a_file_that_is_no_key_is_refused(tmp_path):
    """Never overwritten: devices trust the lost one."""
    (tmp_path / "coordinator.key").write_bytes(b"short")
    with pytest.raises(ConfigError, match="a key has 32"):
        open_key(tmp_path)


def test_an_unsigned_fleet_takes_unsigned_messages_only():
    """A signature by anybody means that this is not the fleet it seems."""
    signing = without_key()
    assert signing.verify(b"", b"", b"x")
    assert not signing.verify(b"12345678", bytes(64), b"x")
