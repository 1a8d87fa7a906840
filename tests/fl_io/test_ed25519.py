"""Signatures: what holds, what does not, and keys as people write them."""

import hashlib

import pytest

from fl_io.ed25519 import new_private_key, public_key_text, read_public_key, signer, unsigned, verifier
from fl_protocol.errors import ConfigError, SignatureError
from fl_protocol.signed import COMMAND_CONTEXT, TASK_CONTEXT, open_envelope, seal

# RFC 8032, section 7.1, TEST 1.
RFC_PRIVATE = bytes.fromhex("9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60")
RFC_PUBLIC = bytes.fromhex("d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a")


def test_the_signature_is_that_of_rfc_8032():
    """The key id is the beginning of the public key's sha256."""
    key_id, signature = signer(RFC_PRIVATE)(b"")
    assert key_id == hashlib.sha256(RFC_PUBLIC).digest()[:8]
    assert signature.hex().startswith("e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e06522490155")
    assert verifier([RFC_PUBLIC])(key_id, signature, b"")


def test_a_signed_message_opens_under_its_key_and_context_only():
    """Neither a foreign key, nor another context, nor a changed byte."""
    key, foreign = new_private_key(), new_private_key()
    verify = verifier([read_public_key(public_key_text(key))])
    envelope = seal(TASK_CONTEXT, b"body", signer(key))
    assert open_envelope(TASK_CONTEXT, envelope, verify, limit=1000) == b"body"
    with pytest.raises(SignatureError):
        open_envelope(COMMAND_CONTEXT, envelope, verify, limit=1000)
    with pytest.raises(SignatureError) as caught:
        open_envelope(TASK_CONTEXT, seal(TASK_CONTEXT, b"body", signer(foreign)), verify, limit=1000)
    assert caught.value.hint
    with pytest.raises(SignatureError):
        open_envelope(TASK_CONTEXT, envelope[:-1] + b"Y", verify, limit=1000)


def test_an_unsigned_message_opens_under_no_key():
    """A fleet without signatures says so on both sides."""
    envelope = seal(TASK_CONTEXT, b"body", unsigned)
    with pytest.raises(SignatureError, match="none"):
        open_envelope(TASK_CONTEXT, envelope, verifier([RFC_PUBLIC]), limit=1000)
    assert open_envelope(TASK_CONTEXT, envelope, lambda *parts: True, limit=1000) == b"body"


def test_an_empty_signature_of_a_trusted_key_does_not_hold():
    """The envelope's form allows it; the key does not."""
    key_id, _ = signer(RFC_PRIVATE)(b"x")
    assert not verifier([RFC_PUBLIC])(key_id, b"", b"x")


def test_keys_rotate_by_trusting_two():
    """While a fleet changes keys, both hold."""
    old, new = new_private_key(), new_private_key()
    verify = verifier(read_public_key(public_key_text(key)) for key in (old, new))
    for key in (old, new):
        envelope = seal(TASK_CONTEXT, b"body", signer(key))
        assert open_envelope(TASK_CONTEXT, envelope, verify, limit=1000) == b"body"


def test_a_public_key_is_written_as_text_and_read_back():
    """``ed25519:`` and 64 hex digits."""
    assert public_key_text(RFC_PRIVATE) == f"ed25519:{RFC_PUBLIC.hex()}"
    assert read_public_key(public_key_text(RFC_PRIVATE)) == RFC_PUBLIC
    assert len(new_private_key()) == 32


@pytest.mark.parametrize(
    "text", ["", "ed25519:", "ed25519:00", "rsa:" + 64 * "0", 64 * "0", "ed25519:" + 64 * "g"]
)
def test_what_is_no_public_key_is_a_configuration_fault(text):
    """With a hint of how it is written."""
    with pytest.raises(ConfigError) as caught:
        read_public_key(text)
    assert caught.value.hint
