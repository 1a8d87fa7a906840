"""What becomes of a message: the order of the checks, and that no sequence of messages breaks it."""

import hashlib
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker_coordinator.decide import (
    MAX_UPLOADS_PER_DEVICE,
    Accept,
    Answer,
    AskEvidence,
    BeginArrived,
    ChunkArrived,
    Count,
    Finish,
    Invite,
    MalformedBegin,
    OpenUpload,
    OrderSeen,
    PutRange,
    Refuse,
    RollBack,
    TaskState,
    decide,
)
from broker_coordinator.storage.records import Outcome, Upload
from fl_protocol.ranges import ByteRanges
from fl_protocol.update import UpdateHeader, update_hash
from fl_protocol.version import VersionId

U = b"u" * 16
SMALL = b"p" * 100
LARGE = 200_000


def version(number, epoch=1):
    return VersionId(epoch=epoch, number=number, digest=bytes([epoch, number]) * 8)


STATE = TaskState(
    epoch=1,
    term=3,
    counter=9,
    horizon=(1, 5),
    witnessed=0,
    version=version(10),
    codec="float32",
    fingerprint=b"f" * 8,
    payload_size=len(SMALL),
)


def header(*, base=None, size=100, **changes):
    made = UpdateHeader(
        incarnation=b"i" * 8,
        base=base or version(10),
        codec="float32",
        size=size,
        sha256=hashlib.sha256(SMALL).digest(),
        fingerprint=b"f" * 8,
        num_examples=3,
        steps_done=1,
        steps_planned=1,
    )
    return replace(made, **changes)


def begin(*, head=None, payload=SMALL, known=None, counted=False, base_known=True, upload=None, **rest):
    head = head or header()
    return BeginArrived(
        device="d",
        update_id=U,
        header=head,
        hash=update_hash(U, head),
        payload=payload,
        known=known,
        counted=counted,
        base_known=base_known,
        upload=upload,
        **rest,
    )


def word(actions):
    """The state and reason of the one answer or refusal among the actions."""
    (spoken,) = [a for a in actions if isinstance(a, Answer | Refuse | Accept | Invite)]
    match spoken:
        case Answer(receipt=receipt):
            return receipt.state, receipt.reason
        case Refuse(reason=reason):
            return "refused", reason
        case Accept():
            return "accept", ""
    return "open", ""


def done(event):
    return Outcome(hash=event.hash, state="done")


def test_a_new_update_with_its_payload_is_accepted():
    """Everything fits: accept."""
    assert word(decide(STATE, begin())) == ("accept", "")


@pytest.mark.parametrize(
    ("event", "expected"),
    [
        (begin(head=header(base=version(4))), ("refused", "stale")),
        (begin(base_known=False), ("refused", "unknown_base")),
        (begin(admitted=False), ("refused", "unknown_device")),
        (begin(admitted=False, base_known=False), ("refused", "unknown_device")),
        (begin(admitted=False, head=header(base=version(4))), ("refused", "stale")),
        (begin(admitted=False, head=header(base=version(11))), ("later", "newer_base")),
        (begin(head=header(base=version(11))), ("later", "newer_base")),
        (begin(head=header(base=version(1, epoch=2))), ("later", "newer_base")),
        (begin(head=header(kind="masked")), ("refused", "kind")),
        (begin(head=header(fingerprint=b"x" * 8)), ("refused", "layout")),
        (begin(head=header(codec="int8")), ("refused", "codec")),
        (begin(head=header(size=101)), ("refused", "oversize")),
        (begin(head=header(size=99)), ("refused", "codec")),
        (begin(counted=True), ("refused", "already_counted")),
        (begin(payload=None), ("open", "")),
        (begin(known=Outcome(hash=b"other", state="done")), ("refused", "conflict")),
    ],
)
def test_each_check_has_its_word(event, expected):
    """One thing wrong, one answer."""
    assert word(decide(STATE, event)) == expected


def test_a_known_id_gets_the_same_word_whatever_else_has_changed():
    """Done stays done: below the horizon, counted, rolled back, in a new epoch."""
    event = begin(head=header(base=version(1)), counted=True, base_known=False)
    event = replace(event, known=done(event))
    for state in (STATE, replace(STATE, witnessed=1), replace(STATE, epoch=7, horizon=(7, 0))):
        assert word(decide(state, event)) == ("done", "")
    refused = replace(event, known=Outcome(hash=event.hash, state="refused", reason="layout"))
    assert word(decide(STATE, refused)) == ("refused", "layout")


def test_a_rolled_back_coordinator_never_refuses_what_is_new():
    """It cannot know better: later, for everything it has not judged before."""
    state = replace(STATE, witnessed=1)
    for event in (
        begin(),
        begin(head=header(base=version(1))),
        begin(base_known=False),
        begin(known=Outcome(hash=b"other", state="done")),
    ):
        assert word(decide(state, event)) == ("later", "rolled_back")
    assert decide(state, MalformedBegin(device="d", update_id=U, known=None)) == (Count(reason="malformed"),)


def test_a_newer_base_asks_for_evidence():
    """A base that we never made means that our store may be an old one."""
    actions = decide(STATE, begin(head=header(base=version(11))))
    assert AskEvidence(device="d") in actions


def test_a_newer_manifest_order_asks_and_its_proof_rolls_back():
    """A claim leads to a question, our own signature to the rolled-back state, and an old one to nothing."""
    assert decide(STATE, OrderSeen(order=(1, 9), device="d")) == ()
    assert decide(STATE, OrderSeen(order=(1, 10), device="d")) == (AskEvidence(device="d"),)
    assert decide(STATE, OrderSeen(order=(1, 10), device="d", proven=True)) == (RollBack(epoch=1),)
    assert decide(STATE, OrderSeen(order=(1, 9), device="d", proven=True)) == ()


def test_a_rolled_back_coordinator_asks_no_more():
    """It knows; only a proof of a higher epoch is news, because a recovery must go above it."""
    state = replace(STATE, witnessed=1)
    assert decide(state, OrderSeen(order=(9, 99), device="d")) == ()
    assert decide(state, OrderSeen(order=(1, 99), device="d", proven=True)) == ()
    assert decide(state, OrderSeen(order=(2, 1), device="d", proven=True)) == (RollBack(epoch=2),)


def test_our_signature_under_a_version_we_do_not_know_rolls_back():
    """Even at a counter that we have reached again; but not in an epoch that was given up."""
    assert decide(STATE, OrderSeen(order=(1, 8), proven=True, version_known=False)) == (RollBack(epoch=1),)
    recovered = replace(STATE, epoch=2)
    assert decide(recovered, OrderSeen(order=(1, 99), proven=True, version_known=False)) == ()


def test_a_large_update_opens_an_upload():
    """Its header is kept, and it is told what is missing."""
    state = replace(STATE, payload_size=LARGE)
    event = begin(head=header(size=LARGE), payload=None)
    opened, invited = decide(state, event)
    assert isinstance(opened, OpenUpload)
    assert invited == Invite(device="d", update_id=U, missing=ByteRanges.of([(0, LARGE)]))
    crowded = replace(event, uploads_open=MAX_UPLOADS_PER_DEVICE)
    assert word(decide(state, crowded)) == ("later", "busy")


@pytest.mark.parametrize(
    ("size", "exact", "reason"),
    [
        (LARGE + 1, True, "oversize"),
        (LARGE - 1, True, "codec"),
        (LARGE + 1, False, "oversize"),
        (0, False, "codec"),
    ],
)
def test_a_size_that_the_codec_never_makes_is_refused(size, exact, reason):
    """Before a byte of it is asked for; of a codec without one length, what is beyond its bounds."""
    state = replace(STATE, payload_size=LARGE, payload_exact=exact)
    assert word(decide(state, begin(head=header(size=size), payload=None))) == ("refused", reason)


def test_a_codec_without_one_length_may_send_less():
    """The upload is as long as its header says."""
    state = replace(STATE, payload_size=LARGE, payload_exact=False)
    _, invited = decide(state, begin(head=header(size=LARGE - 1), payload=None))
    assert invited == Invite(device="d", update_id=U, missing=ByteRanges.of([(0, LARGE - 1)]))


def test_an_upload_goes_on_where_it_was():
    """What is durable is not asked for again; with nothing missing it is finished."""
    state = replace(STATE, payload_size=LARGE)
    event = begin(head=header(size=LARGE), payload=None)
    upload = Upload(
        update_id=U,
        device="d",
        header=event.header.pack(),
        hash=event.hash,
        ranges=ByteRanges.of([(0, 65536)]),
    )
    (invited,) = decide(state, replace(event, upload=upload))
    assert invited.missing == ByteRanges.of([(65536, LARGE)])
    whole = replace(upload, ranges=ByteRanges.of([(0, LARGE)]))
    assert decide(state, replace(event, upload=whole)) == (Finish(device="d", update_id=U),)
    other = replace(upload, hash=b"other")
    assert word(decide(state, replace(event, upload=other))) == ("refused", "conflict")


def chunk(start, length, *, upload, known=None):
    return ChunkArrived(
        device="d", update_id=U, start=start, content=bytes(length), known=known, upload=upload, size=LARGE
    )


def test_chunks_are_stored_within_their_upload_only():
    """No upload, another device's, past the end, empty: counted. The last one finishes it."""
    upload = Upload(update_id=U, device="d", header=b"", hash=b"h", ranges=ByteRanges.of([(0, LARGE - 4096)]))
    put, finish = decide(STATE, chunk(LARGE - 4096 - LARGE % 4096, 4096 + LARGE % 4096, upload=upload))
    assert isinstance(put, PutRange)
    assert isinstance(finish, Finish)
    assert decide(STATE, chunk(0, 10, upload=None)) == (Count(reason="chunk_without_upload"),)
    assert decide(STATE, chunk(0, 10, upload=replace(upload, device="e"))) == (
        Count(reason="chunk_without_upload"),
    )
    assert decide(STATE, chunk(LARGE, 1, upload=upload)) == (Count(reason="chunk_out_of_bounds"),)
    assert decide(STATE, chunk(0, 0, upload=upload)) == (Count(reason="chunk_out_of_bounds"),)
    assert decide(STATE, chunk(0, (120 << 10) + 1, upload=replace(upload, ranges=ByteRanges()))) == (
        Count(reason="chunk_out_of_bounds"),
    )
    shut_out = replace(chunk(0, 4096, upload=upload), admitted=False)
    assert decide(STATE, shut_out) == (Count(reason="unknown_device"),)
    late = chunk(0, 10, upload=None, known=Outcome(hash=b"h", state="done"))
    assert word(decide(STATE, late)) == ("done", "")


def test_an_upload_in_crumbs_is_bounded():
    """A byte here and a byte there: beyond what a receipt can list, more pieces are not taken, but what
    joins two pieces is."""
    crumbs = ByteRanges.of([(at * 8192, at * 8192 + 1) for at in range(256)])
    upload = Upload(update_id=U, device="d", header=b"", hash=b"h", ranges=crumbs)
    size = 1 << 30
    scattered = replace(chunk(300 * 8192, 1, upload=upload), size=size)
    assert decide(STATE, scattered) == (Count(reason="chunk_scattered"),)
    joining = replace(chunk(4096, 8192, upload=upload), size=size)
    assert isinstance(decide(STATE, joining)[0], PutRange)


class Books:
    """A store of sets: what the real one would say, and nothing else."""

    def __init__(self):
        self.outcomes = {}
        self.counted = set()
        self.accepts = []
        self.words = {}

    def event(self, update_id, head, payload, device):
        return BeginArrived(
            device=device,
            update_id=update_id,
            header=head,
            hash=update_hash(update_id, head),
            payload=payload,
            known=self.outcomes.get(update_id),
            counted=(device, head.base.epoch, head.base.number) in self.counted,
            base_known=head.base.digest == version(head.base.number, head.base.epoch).digest,
            upload=None,
        )

    def carry_out(self, action):
        match action:
            case Accept():
                assert action.update_id not in self.accepts
                base = action.header.base
                assert (action.device, base.epoch, base.number) not in self.counted
                self.accepts.append(action.update_id)
                self.counted.add((action.device, base.epoch, base.number))
                self.outcomes[action.update_id] = Outcome(hash=action.hash, state="done")
                self.said(action.update_id, action.hash, "done")
            case Refuse():
                self.outcomes[action.update_id] = Outcome(
                    hash=action.hash, state="refused", reason=action.reason
                )
                self.said(action.update_id, action.hash, action.reason)

    def said(self, update_id, digest, text):
        assert self.words.setdefault((update_id, digest), text) == text


ids = st.sampled_from([bytes([n]) * 16 for n in range(4)])
bases = st.builds(
    lambda number, epoch, wrong: replace(
        version(number, epoch), digest=b"w" * 16 if wrong else version(number, epoch).digest
    ),
    st.integers(0, 12),
    st.integers(1, 2),
    st.booleans(),
)
heads = st.builds(
    lambda base, codec, kind, examples: header(base=base, codec=codec, kind=kind, num_examples=examples),
    bases,
    st.sampled_from(["float32", "int8"]),
    st.sampled_from(["plain", "masked"]),
    st.integers(1, 2),
)
messages = st.tuples(st.just("begin"), ids, heads, st.booleans(), st.sampled_from(["d", "e"]))
turns = st.tuples(st.sampled_from(["close", "roll_back", "recover"]))


@settings(max_examples=300, deadline=None)
@given(st.lists(st.one_of(messages, turns), max_size=40))
def test_no_sequence_accepts_an_id_twice_or_changes_a_word(history):
    """Whatever devices send and whenever versions close: one acceptance per id and per device and base, and
    one terminal word per id and header."""
    books, state = Books(), STATE
    for turn in history:
        if turn[0] == "close":
            number = state.version.number + 1
            state = replace(
                state,
                version=version(number, state.epoch),
                horizon=max(state.horizon, (state.epoch, number - 5)),
            )
        elif turn[0] == "roll_back":
            state = replace(state, witnessed=state.epoch)
        elif turn[0] == "recover":
            epoch = state.epoch + 1
            state = replace(state, witnessed=0, epoch=epoch, version=version(state.version.number + 1, epoch))
        else:
            _, update_id, head, with_payload, device = turn
            event = books.event(update_id, head, SMALL if with_payload else None, device)
            for action in decide(state, event):
                books.carry_out(action)
                if (
                    isinstance(action, Answer)
                    and action.receipt.terminal
                    and action.receipt.reason != "conflict"
                ):
                    books.said(update_id, event.hash, action.receipt.reason or "done")
                if state.rolled_back:
                    assert not isinstance(action, Refuse | Accept)
