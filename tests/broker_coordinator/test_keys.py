"""The coordinator's signing key."""

import pytest

from broker_coordinator.keys import open_key
from fl_protocol.errors import ConfigError, StorageError
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


@pytest.mark.parametrize("there", [True, False])
def test_a_damaged_or_lost_key_is_not_replaced_in_silence(tmp_path, there):
    """Any 32 bytes are a key, but not the one that the fleet's devices trust."""
    text = open_key(tmp_path).public_key
    path = tmp_path / "coordinator.key"
    path.write_bytes(bytes(32)) if there else path.unlink()
    with pytest.raises(StorageError, match=r"coordinator\.pub"):
        open_key(tmp_path)
    assert (tmp_path / "coordinator.pub").read_text() == text + "\n"


def test_a_damaged_public_key_is_written_anew(tmp_path):
    """It follows from the private one."""
    text = open_key(tmp_path).public_key
    (tmp_path / "coordinator.pub").write_bytes(b"\xff\x00 no key")
    assert open_key(tmp_path).public_key == text
    assert (tmp_path / "coordinator.pub").read_text() == text + "\n"
