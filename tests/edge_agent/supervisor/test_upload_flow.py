"""An update leaves the outbox only by the coordinator's word; how it is asked for, and what it costs."""

import pytest

from fl_protocol.loopback import LoopbackTransport
from fl_protocol.presence import DevicePresence
from fl_protocol.ranges import ByteRanges

CHUNK = 65536


def silent(update_id, header, payload):
    """A coordinator that hears and says nothing."""


def payloads(world):
    return [payload is not None for _, _, payload in world.coordinator.begins]


def test_a_puback_is_not_a_receipt(world):
    """The broker acknowledged, the coordinator said nothing: probed without payload, 30 s doubling."""
    world.coordinator.answer = silent
    world.coordinator.publish_version(1)
    world.boot()
    world.advance(600)
    assert payloads(world)[0] is True
    assert not any(payloads(world)[1:])
    assert 3 <= len(payloads(world)) <= 6
    assert world.outbox.counts().waiting == 1
    assert world.agent.state == "uploading"


def test_the_payload_is_sent_again_only_when_the_answer_is_open(world):
    """A coordinator that lost it asks for it, and gets the same bytes."""
    world.coordinator.answer = silent
    world.coordinator.publish_version(1)
    world.boot()
    world.advance(1)
    world.coordinator.answer = world.coordinator.accept
    world.advance(120)
    assert payloads(world) == [True, False, True]
    first, _, again = world.coordinator.begins
    assert first == again
    assert world.outbox.counts().done == 1


def test_an_update_of_an_earlier_life_is_asked_about_before_it_is_sent(world):
    """kill -9 between PUBACK and receipt: the next life probes; an accepted update is not sent twice."""
    world.coordinator.publish_version(1)
    receipts = []

    def accept_but_keep_quiet(update_id, header, payload):
        receipts.append(world.coordinator.accept(update_id, header, payload))

    world.coordinator.answer = accept_but_keep_quiet
    world.boot()
    world.advance(1)
    world.kill()
    world.coordinator.answer = world.coordinator.accept
    world.boot()
    world.advance(1)
    assert payloads(world) == [True, False]
    assert world.outbox.counts().done == 1
    assert len(world.coordinator.payloads) == 1


def test_a_receipt_that_was_lost_is_given_again_on_reconnect(world):
    """Every connection begins with a probe of what waits."""
    world.coordinator.answer = silent
    world.coordinator.publish_version(1)
    world.boot()
    world.advance(1)
    world.coordinator.payloads[world.coordinator.begins[0][0]] = b""
    world.coordinator.answer = world.coordinator.accept
    world.transport.drop("bad link")
    world.transport.reconnect()
    world.advance(1)
    assert payloads(world) == [True, False]
    assert world.outbox.counts().done == 1


def test_later_is_obeyed(world):
    """wait_s, and up to half as much again at random."""
    world.coordinator.answer = lambda update_id, header, payload: world.coordinator.receipt(
        "later", wait_s=1000.0, reason="rolled back"
    )
    world.coordinator.publish_version(1)
    world.boot()
    world.advance(999)
    assert len(world.coordinator.begins) == 1
    world.coordinator.answer = world.coordinator.accept
    world.advance(502)
    assert world.outbox.counts().done == 1


def test_a_refusal_ends_an_update_and_is_remembered_with_its_reason(world):
    """The ledger says refused and why; nothing is asked any more."""
    world.coordinator.answer = lambda update_id, header, payload: world.coordinator.receipt(
        "refused", reason="stale"
    )
    world.coordinator.publish_version(1)
    world.boot()
    world.advance(100_000)
    assert len(world.coordinator.begins) == 1
    assert world.agent.status()["last_refusal"] == "stale"
    assert [(row.outcome, row.reason) for row in world.outbox.ledger()][-1] == ("refused", "stale")


def test_a_training_goes_on_while_the_link_is_down(world):
    """The update waits in the outbox and goes up, payload at once, with the next connection."""
    world.script.hold = True
    world.coordinator.publish_version(1)
    world.boot()
    world.advance(1)
    world.transport.drop("out of reach")
    world.worker.release()
    world.advance(86400)
    assert world.agent.state == "offline"
    assert world.outbox.counts().waiting == 1
    world.transport.reconnect()
    world.advance(1)
    assert world.outbox.counts().done == 1


def test_a_new_session_of_the_coordinator_is_told_everything(world):
    """Birth and probes again, spread over seconds: the new one may have heard nothing."""
    world.coordinator.present(b"session1")
    world.coordinator.answer = silent
    world.coordinator.publish_version(1)
    world.boot()
    world.advance(1)
    births, begins = len(world.coordinator.births), len(world.coordinator.begins)
    world.coordinator.present(b"session1")
    world.advance(5)
    assert (len(world.coordinator.births), len(world.coordinator.begins)) == (births, begins)
    world.coordinator.present(b"session2")
    world.advance(5)
    assert (len(world.coordinator.births), len(world.coordinator.begins)) == (births + 1, begins + 1)


def test_a_coordinator_that_comes_after_us_is_told_everything(world):
    """A broker without its store: the first live word of a coordinator is a reason to restate."""
    world.boot()
    world.advance(1)
    world.coordinator.births.clear()
    world.coordinator.present(b"session1", retain=False)
    world.advance(5)
    assert len(world.coordinator.births) == 1


@pytest.mark.parametrize("credit", [CHUNK, 3 * CHUNK, 1 << 24])
def test_a_large_payload_goes_up_in_chunks_against_credit(make_world, credit):
    """No payload byte without credit; each byte once; the last chunk is the rest."""
    world = make_world()
    world.script.payload = bytes(i * 7 % 251 for i in range(5 * CHUNK + 1000))
    have = {"ranges": ByteRanges()}

    def answer(update_id, header, payload):
        assert payload is None
        for offset, chunk in world.coordinator.chunks:
            have["ranges"] = have["ranges"].add(offset, offset + len(chunk))
        missing = have["ranges"].missing(header.size)
        if not missing:
            return world.coordinator.receipt("done")
        return world.coordinator.receipt("open", missing=missing, credit=credit)

    world.coordinator.answer = answer
    world.coordinator.publish_version(1)
    world.boot()
    world.advance(300)
    assert world.outbox.counts().done == 1
    content = bytearray(len(world.script.payload))
    for offset, chunk in world.coordinator.chunks:
        content[offset : offset + len(chunk)] = chunk
    assert bytes(content) == world.script.payload
    assert sum(len(chunk) for _, chunk in world.coordinator.chunks) == len(content)


def test_a_large_upload_resumes_where_the_coordinator_says(world):
    """After a broken link only what is missing goes up, at offsets that are multiples of 4096."""
    world.script.payload = bytes(4 * CHUNK)
    world.coordinator.answer = lambda update_id, header, payload: world.coordinator.receipt(
        "open", missing=ByteRanges(((8192, 12288), (2 * CHUNK, 3 * CHUNK))), credit=1 << 20
    )
    world.coordinator.publish_version(1)
    world.boot()
    world.advance(1)
    assert [(offset, len(chunk)) for offset, chunk in world.coordinator.chunks] == [
        (8192, 4096),
        (2 * CHUNK, CHUNK),
    ]


def test_after_a_break_chunks_are_small_until_an_update_is_through(make_world, monkeypatch):
    """Of a chunk that is cut off, all is lost: 64 KiB each, but 16 KiB after a break with some under way."""
    world = make_world()
    world.script.payload = bytes(i * 7 % 251 for i in range(4 * CHUNK))
    have = {"ranges": ByteRanges()}

    def answer(update_id, header, payload):
        for offset, chunk in world.coordinator.chunks:
            have["ranges"] = have["ranges"].add(offset, offset + len(chunk))
        missing = have["ranges"].missing(header.size)
        return world.coordinator.receipt(
            "open" if missing else "done", missing=missing or ByteRanges(), credit=2 * CHUNK
        )

    world.coordinator.answer = answer
    world.boot()
    publish, sent = LoopbackTransport.publish, []

    def publish_over_a_bad_link(transport, topic, payload, **options):
        token = publish(transport, topic, payload, **options)
        if "/chunk/" in topic:
            sent.append(len(payload))
            if len(sent) == 2:
                world.transport.drop("the link broke under two chunks")
        return token

    monkeypatch.setattr(LoopbackTransport, "publish", publish_over_a_bad_link)
    world.coordinator.publish_version(1)
    world.advance(1)
    assert sent == [CHUNK, CHUNK]
    world.transport.reconnect()
    world.advance(300)
    assert world.outbox.counts().done == 1
    assert set(sent[2:]) == {CHUNK // 4}
    sent[:] = [0, 0]
    world.coordinator.chunks.clear()
    have["ranges"] = ByteRanges()
    world.coordinator.publish_version(2)
    world.advance(300)
    assert world.outbox.counts().done == 2
    assert set(sent[2:]) == {CHUNK}


def test_no_credit_means_no_payload(world):
    """Even a small payload waits for credit when the coordinator has none to give."""
    world.coordinator.answer = lambda update_id, header, payload: world.coordinator.receipt(
        "open", missing=ByteRanges(((0, header.size),)), credit=0
    )
    world.coordinator.publish_version(1)
    world.boot()
    world.advance(200)
    assert payloads(world)[0] is True
    assert not any(payloads(world)[1:])


def test_only_a_few_updates_are_under_way_at_once(make_world):
    """The oldest four are asked about; the rest follow as these are answered."""
    world = make_world()
    world.coordinator.answer = silent
    world.boot()
    for number in range(1, 11):
        world.coordinator.publish_version(number)
        world.advance(1)
    world.transport.drop("bad link")
    world.coordinator.begins.clear()
    world.transport.reconnect()
    world.pump()
    assert len(world.coordinator.begins) == 4
    world.coordinator.answer = world.coordinator.accept
    world.advance(600)
    assert world.outbox.counts().done == 10
    assert {header.base.number for _, header, payload in world.coordinator.begins if payload} == set(
        range(1, 11)
    )


def test_a_clean_stop_says_farewell_with_the_session_of_the_birth(world):
    """No will: the device itself says that it goes."""
    world.boot()
    world.advance(1)
    world.shut_down()
    birth, farewell = world.coordinator.births
    assert (birth.online, farewell.online) == (True, False)
    assert birth.session == farewell.session


def test_a_broken_connection_speaks_its_will_and_the_next_has_another_session(world):
    """A late will of an older session can be told from the newest."""
    world.boot()
    world.advance(1)
    world.transport.drop("bad link")
    world.transport.reconnect()
    world.advance(1)
    births: list[DevicePresence] = world.coordinator.births
    assert [birth.online for birth in births] == [True, False, True]
    assert births[0].session == births[1].session != births[2].session


def test_a_version_costs_few_bytes(world):
    """Topic and payload bytes of one version beyond the payload: the header, one subscription, no chatter."""
    world.boot()
    world.coordinator.publish_version(1)
    world.advance(1)
    before = world.transport.traffic().sent
    world.coordinator.publish_version(2)
    world.advance(86400)
    assert world.transport.traffic().sent - before - len(world.script.payload) < 300


def test_malformed_messages_are_counted_and_nothing_else_happens(world):
    """Foreign topics, rubbish, receipts for nobody, presence that is none: ignored, counted."""
    world.boot()
    world.advance(1)
    topics = world.coordinator.topics
    for topic, body in [
        (topics.receipt("dev-1", b"\0" * 16), b"\xff\xff"),
        (topics.receipt("dev-1", b"\0" * 16), b""),
        (topics.command("dev-1"), b"rubbish"),
        (topics.task(), b"rubbish"),
        (topics.coordinator, b"\x80"),
        ("fl1/test/down/dev-1/nonsense", b""),
        ("fl1/test/down/dev-1/blob/short/0", b""),
        (topics.blob_for("dev-1", "a" * 26 + ".65536", 0), b"unasked"),
    ]:
        world.coordinator.say(topic, body)
    world.advance(1)
    assert world.agent.status()["ignored"] == 7
    world.coordinator.publish_version(1)
    world.advance(1)
    assert world.outbox.counts().done == 1
