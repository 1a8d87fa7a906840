"""Downloads: exactly what is missing, resumed anywhere, verified chunk by chunk."""

import contextlib
import hashlib
import itertools
import random

import pytest
from simulated_disk import PowerCut, SimulatedDisk

from edge_agent.download import Download, Downloads
from fl_protocol.blob import BlobRef
from fl_protocol.clock import ManualClock
from fl_protocol.errors import MessageError
from fl_protocol.topics import BlobTopic, FleetTopics, blob_name
from fl_protocol.transport import Traffic

S = 4096
TOPICS = FleetTopics("f")


def blob(size: int) -> bytes:
    """Bytes that differ from chunk to chunk."""
    return random.Random(size).randbytes(size)


def feed(download: Download, content: bytes, indices) -> list[bool]:
    ref = BlobRef.of(content, chunk_bytes=S)
    name = blob_name(ref.address, S)
    return [download.take(name, i, content[slice(*ref.chunk_range(i))]) for i in indices]


@pytest.mark.parametrize("size", [0, 1, S - 1, S, S + 1, 10 * S + 5])
def test_a_blob_arrives_whole_in_any_order(tmp_path, size):
    """One chunk or many, in any order, twice or once: the file is the blob, and there is no part file."""
    content = blob(size)
    ref = BlobRef.of(content, chunk_bytes=S)
    download = Download(ref, tmp_path / "blob")
    order = [*range(ref.chunk_count)] * 2
    random.Random(1).shuffle(order)
    if size:
        feed(download, content, order)
    assert download.complete
    assert [path.name for path in tmp_path.iterdir()] == ["blob"]
    assert (tmp_path / "blob").read_bytes() == content


def test_a_part_file_is_believed_only_as_far_as_it_hashes(tmp_path):
    """A new life takes what the file holds, a torn or rotten chunk is fetched again."""
    content = blob(6 * S)
    ref = BlobRef.of(content, chunk_bytes=S)
    feed(Download(ref, tmp_path / "blob"), content, [0, 2, 3, 5])
    part = tmp_path / ".blob.part"
    torn = bytearray(part.read_bytes())
    torn[3 * S + 7] ^= 1
    part.write_bytes(torn[: 6 * S - 10])
    again = Download(ref, tmp_path / "blob")
    assert [index for _, index in again.missing()] == [1, 3, 4, 5]
    feed(again, content, [1, 3, 4, 5])
    assert (tmp_path / "blob").read_bytes() == content


def test_a_chunk_that_is_not_its_hash_is_counted_and_not_written(tmp_path):
    """Wrong content, wrong length, wrong blob, wrong index: none is taken."""
    content = blob(3 * S)
    ref = BlobRef.of(content, chunk_bytes=S)
    download = Download(ref, tmp_path / "blob")
    name = blob_name(ref.address, S)
    assert not download.take(name, 0, content[S : 2 * S])
    assert not download.take(name, 1, content[S : 2 * S - 1])
    assert download.damaged == 2
    assert not download.take(blob_name("a" * 26, S), 0, content[:S])
    assert not download.take(name, 3, b"")
    assert len(list(download.missing())) == 3


def test_a_long_chunk_list_is_fetched_first(tmp_path):
    """More than 64 chunks: their hashes are a blob of their own."""
    content = blob(70 * S)
    whole = BlobRef.of(content, chunk_bytes=S)
    slim, chunk_list = whole.listed()
    download = Download(slim, tmp_path / "blob")
    assert {name for name, _ in download.missing()} == {blob_name(slim.chunk_list.address, S)}
    assert feed(download, chunk_list, [0]) == [True]
    assert len(list(download.missing())) == 70
    feed(download, content, range(70))
    assert download.complete
    assert [path.name for path in tmp_path.iterdir()] == ["blob"]


def test_a_chunk_list_that_contradicts_itself_raises(tmp_path):
    """A list that hashes right but is for another blob cannot lead to a wrong file."""
    slim, _ = BlobRef.of(blob(70 * S), chunk_bytes=S).listed()
    other = hashlib.sha256(b"").digest() * 69
    liar = BlobRef(
        sha256=slim.sha256, size=slim.size, chunk_bytes=S, chunk_list=BlobRef.of(other, chunk_bytes=S)
    )
    download = Download(liar, tmp_path / "blob")
    with pytest.raises(MessageError):
        feed(download, other, [0])


def test_a_whole_that_is_not_its_hash_starts_over(tmp_path):
    """Every chunk fits but the whole does not: nothing stands under the final name."""
    content = blob(2 * S)
    honest = BlobRef.of(content, chunk_bytes=S)
    liar = BlobRef(sha256=b"\1" * 32, size=honest.size, chunk_bytes=S, chunks=honest.chunks)
    download = Download(liar, tmp_path / "blob")
    for index in (0, 1):
        download.take(blob_name(liar.address, S), index, content[index * S : index * S + S])
    assert not download.complete
    assert download.damaged == 1
    assert not (tmp_path / "blob").exists()


def download_with_power_cut(folder, content, disk) -> None:
    """Download until it is done or the power goes; then the folder is what a power cut leaves."""
    ref = BlobRef.of(content, chunk_bytes=S)
    with contextlib.suppress(PowerCut):
        feed(Download(ref, folder / "blob", disk=disk), content, range(ref.chunk_count))
    disk.crash()


@pytest.mark.parametrize("size", [S, 5 * S + 100])
def test_a_power_cut_never_leaves_a_wrong_file(tmp_path, size):
    """Before any disk operation: what stands under the final name is whole, and the next life completes."""
    content = blob(size)
    for seed, cut in itertools.product(range(4), range(1, 16)):
        folder = tmp_path / f"{seed}-{cut}"
        folder.mkdir()
        download_with_power_cut(folder, content, SimulatedDisk(seed=seed, cut=cut))
        if (folder / "blob").exists():
            assert (folder / "blob").read_bytes() == content
        again = Download(BlobRef.of(content, chunk_bytes=S), folder / "blob")
        feed(again, content, [index for _, index in again.missing()])
        assert (folder / "blob").read_bytes() == content


def test_a_forgotten_fsync_would_be_seen(tmp_path):
    """The same without the fsync of the file: some power cut leaves a wrong file under the final name."""
    content = blob(5 * S)
    wrong = 0
    for seed in range(20):
        folder = tmp_path / str(seed)
        folder.mkdir()
        download_with_power_cut(folder, content, SimulatedDisk(seed=seed, skip=["sync:1"]))
        wrong += (folder / "blob").exists() and (folder / "blob").read_bytes() != content
    assert wrong


class Wire:
    """A transport that writes down what it is asked."""

    def __init__(self):
        self.log = []
        self.open = set()
        self.received = 0

    def traffic(self):
        return Traffic(0, self.received)

    def subscribe(self, filters):
        self.log.append(("subscribe", len(filters)))
        self.open.update(filters)

    def unsubscribe(self, filters):
        self.log.append(("unsubscribe", len(filters)))
        self.open.difference_update(filters)

    def publish(self, topic, payload, *, retain=False):
        self.log.append(("publish", topic))
        return 1


@pytest.fixture
def fetching(tmp_path):
    """A blob of 20 chunks that is wanted, over a wire that is written down."""
    content = blob(20 * S)
    ref = BlobRef.of(content, chunk_bytes=S)
    wire, clock = Wire(), ManualClock()
    downloads = Downloads(TOPICS, "d", wire, clock, chance=random.Random(1))
    downloads.want({tmp_path / "blob": ref})
    downloads.connected()

    def give(index: int, chunk: bytes | None = None, *, device: str | None = None) -> None:
        start, end = ref.chunk_range(index)
        topic = BlobTopic(ref.address, S, index, device)
        downloads.receive(topic, content[start:end] if chunk is None else chunk)

    return downloads, wire, clock, give, tmp_path / "blob"


def test_a_window_of_eight_is_open_and_what_came_is_taken_back_late(fetching):
    """Eight unanswered subscriptions at most, sixteen answered ones: a short connection pays for none."""
    downloads, wire, _, give, path = fetching
    downloads.work()
    assert wire.log == [("subscribe", 8)]
    for index in range(20):
        give(index)
        downloads.work()
        assert len(wire.open) <= 8 + 16
    assert downloads.complete
    assert path.exists()
    assert len(wire.open) == 16
    assert wire.log.count(("unsubscribe", 1)) == 4


def test_a_damaged_chunk_is_not_asked_of_the_broker_for_ever(fetching):
    """What the broker retains is wrong: no loop, and after some patience the coordinator is asked."""
    downloads, wire, clock, give, _ = fetching
    downloads.work()
    for _ in range(5):
        give(0, b"rubbish" * 10)
        downloads.work()
    assert wire.log == [("subscribe", 8)]
    assert downloads.damaged == 5
    for index in range(1, 20):
        give(index)
        downloads.work()
    clock.advance(20)
    downloads.work()
    assert wire.log[-1] == ("publish", TOPICS.get("d"))
    give(0, device="d")
    assert downloads.complete


def test_a_silent_chunk_is_asked_for_with_growing_patience(fetching):
    """No answer for ten seconds: ``get``; and again later and later."""
    downloads, wire, clock, _, _ = fetching
    downloads.work()
    asked = []
    for second in range(400):
        clock.advance(1.0)
        before = len(wire.log)
        downloads.work()
        if len(wire.log) > before:
            asked.append(second)
    assert 10 <= asked[0] <= 15
    assert 4 <= len(asked) <= 6


def test_a_chunk_that_is_on_its_way_is_waited_for(fetching):
    """A slow link brings a few bytes a second: asked for, it would come twice; but not for ever."""
    downloads, wire, clock, give, _ = fetching
    downloads.work()
    for _ in range(40):
        clock.advance(1.0)
        wire.received += 1000
        downloads.work()
    assert wire.log == [("subscribe", 8)]
    assert not downloads.stalled
    for _ in range(60):
        clock.advance(1.0)
        wire.received += 1000
        downloads.work()
    assert wire.log[-1] == ("publish", TOPICS.get("d"))
    assert downloads.stalled
    give(0)
    assert not downloads.stalled


def test_connection_after_connection_without_a_chunk_is_a_stall(fetching):
    """Each is too short for patience to end; one chunk, and it is none."""
    downloads, _, _, give, _ = fetching
    for _ in range(4):
        downloads.disconnected()
        downloads.connected()
        downloads.work()
    assert downloads.stalled
    give(0)
    assert not downloads.stalled


def test_where_the_coordinator_answers_it_is_asked_directly(fetching):
    """A broker without retained messages: after the first answer, no subscription is tried any more."""
    downloads, wire, clock, give, _ = fetching
    downloads.work()
    clock.advance(20)
    downloads.work()
    for index in range(20):
        give(index, device="d")
        downloads.work()
    assert downloads.complete
    assert wire.log.count(("subscribe", 8)) == 1
    assert sum(kind == "subscribe" for kind, _ in wire.log) == 1


def test_an_empty_payload_says_that_it_is_gone(fetching):
    """The coordinator has the next word; nothing is asked for meanwhile."""
    downloads, wire, clock, give, path = fetching
    downloads.work()
    give(3, b"")
    assert downloads.gone
    downloads.work()
    log = len(wire.log)
    clock.advance(1000)
    downloads.work()
    assert len(wire.log) == log
    downloads.want({})
    assert not downloads.gone
    assert not path.exists()


def test_what_was_gone_is_asked_of_the_coordinator_once_it_has_spoken(fetching):
    """It still names the blob: what the broker lost, or never had, it may give itself."""
    downloads, wire, _, give, path = fetching
    downloads.work()
    give(0)
    give(3, b"")
    downloads.work()
    downloads.retry()
    assert not downloads.gone
    downloads.work()
    assert ("publish", TOPICS.get("d")) in wire.log
    for index in range(1, 20):
        give(index, device="d")
        downloads.work()
    assert downloads.complete
    assert path.exists()


def test_a_new_connection_may_have_what_the_last_one_had_not(fetching):
    """Another broker, or the same with its store filled again."""
    downloads, wire, _, give, _ = fetching
    downloads.work()
    give(3, b"")
    downloads.disconnected()
    wire.open.clear()
    downloads.connected()
    downloads.work()
    assert len(wire.open) == 8


def give_all(downloads, ref, content) -> int:
    """Answer whatever is asked for, for as long as anything is; the number of chunks."""
    count = 0
    while not downloads.gone and (chunks := downloads._next_chunks() or list(downloads._open)):
        downloads.work()
        for name, index in chunks:
            address, _, size = name.partition(".")
            downloads.receive(BlobTopic(address, int(size), index), content[slice(*ref.chunk_range(index))])
            count += 1
    return count


def test_a_reference_that_contradicts_itself_is_given_up(tmp_path):
    """Its chunks never make the whole: three times, not for ever at the speed of the link."""
    content = blob(2 * S)
    honest = BlobRef.of(content, chunk_bytes=S)
    liar = BlobRef(sha256=b"\1" * 32, size=honest.size, chunk_bytes=S, chunks=honest.chunks)
    downloads = Downloads(TOPICS, "d", Wire(), ManualClock(), chance=random.Random(1))
    downloads.want({tmp_path / "blob": liar})
    downloads.connected()
    assert give_all(downloads, liar, content) == 6
    assert downloads.gone
    assert downloads.damaged == 3


def test_a_chunk_list_that_contradicts_its_reference_is_given_up(tmp_path):
    """Nothing else would ever come of it: a device that waits must say so."""
    slim, _ = BlobRef.of(blob(70 * S), chunk_bytes=S).listed()
    other = hashlib.sha256(b"").digest() * 69
    inner = BlobRef.of(other, chunk_bytes=S)
    liar = BlobRef(sha256=slim.sha256, size=slim.size, chunk_bytes=S, chunk_list=inner)
    downloads = Downloads(TOPICS, "d", Wire(), ManualClock(), chance=random.Random(1))
    downloads.want({tmp_path / "blob": liar})
    downloads.connected()
    with pytest.raises(MessageError):
        give_all(downloads, inner, other)
    assert downloads.gone


def test_a_file_that_vanished_as_soon_as_it_was_there_is_not_fetched_in_a_loop(fetching):
    """A card that gives back other bytes than it took: wanted again although all of it came."""
    downloads, _, _, give, path = fetching
    goals = dict(downloads._goals)
    downloads.work()
    for index in range(20):
        give(index)
        downloads.work()
    path.unlink()
    downloads.want(goals)
    assert downloads.gone
    downloads.retry()
    assert not downloads.complete


def test_what_is_no_longer_wanted_is_unsubscribed(fetching):
    """A newer version replaces the goals in the middle of a download."""
    downloads, wire, _, give, _ = fetching
    downloads.work()
    give(0)
    downloads.want({})
    downloads.work()
    assert len(wire.open) == 1
    assert downloads.complete


def test_a_new_connection_subscribes_again_to_what_is_missing_only(fetching):
    """received / needed stays at 1 over any number of breaks."""
    downloads, wire, _, give, _ = fetching
    downloads.work()
    for index in range(5):
        give(index)
    downloads.disconnected()
    wire.open.clear()
    downloads.connected()
    downloads.work()
    assert len(wire.open) == 8
    assert not any(topic.endswith(("/0", "/1", "/2", "/3", "/4")) for topic in wire.open)
