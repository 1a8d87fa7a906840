"""The sample store: what an app puts in comes out to train on, for ever split the same way."""

import multiprocessing
import os
import sqlite3
import stat
import threading
from contextlib import closing

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_agent import stored_samples
from edge_agent.sample_count import count_samples
from edge_agent.sample_form import shaped
from edge_agent.samples import SampleStore
from fl_protocol.errors import LayoutError, StorageError


@pytest.fixture
def store(tmp_path):
    with SampleStore(tmp_path / "samples.db") as opened:
        yield opened


def everything(store: SampleStore) -> np.ndarray:
    return np.sort(np.concatenate([store.training().all()[1], store.held_out().all()[1]]).ravel())


def test_what_went_in_comes_out(store):
    """Values, shapes and order of addition are kept; float64 becomes float32, int64 int32."""
    x = np.arange(400 * 6, dtype=np.float64).reshape(400, 2, 3)
    ids = store.extend(x, range(400))
    assert len(set(ids)) == len(store) == 400
    training_x, training_y = store.training().all()
    assert (training_x.dtype, training_y.dtype) == (np.float32, np.int32)
    assert training_x.shape[1:] == (2, 3)
    assert np.array_equal(training_x, x[training_y])
    assert np.all(np.diff(training_y) > 0)
    assert np.array_equal(everything(store), np.arange(400))


def test_a_fifth_is_held_out_and_stays_so(tmp_path):
    """A sample never changes sides: not when others come or go, nor when the store is opened again."""
    path = tmp_path / "samples.db"
    with SampleStore(path) as store:
        store.extend(np.zeros((2000, 1)), np.arange(2000))
        held_out = set(store.held_out().all()[1].tolist())
        assert 300 < len(held_out) < 500
        doomed = store.add([0.0], 2000)
        assert store.delete(doomed)
        assert not store.delete(doomed)
    with SampleStore(path) as store:
        store.extend(np.zeros((500, 1)), np.arange(3000, 3500))
        assert {value for value in store.held_out().all()[1].tolist() if value < 2000} == held_out
        assert count_samples(path) == (len(store.training()), len(store.held_out()))
        assert not held_out & set(store.training().all()[1].tolist())


def test_the_oldest_gives_way_and_is_counted(tmp_path):
    """By number and by bytes; the newest stays even where it alone is too large."""
    with SampleStore(tmp_path / "a.db", max_samples=10) as store:
        store.extend(np.zeros((25, 1)), np.arange(25))
        assert (len(store), store.evicted) == (10, 15)
        assert np.array_equal(everything(store), np.arange(15, 25))
    with SampleStore(tmp_path / "b.db", max_bytes=1000) as store:
        for number in range(8):
            store.add(np.zeros(50, np.float32), number)
        assert (len(store), store.evicted) == (4, 4)
    with SampleStore(tmp_path / "c.db", max_bytes=10) as store:
        store.add(np.zeros(50), 1)
        store.add(np.zeros(50), 2)
        assert np.array_equal(everything(store), [2])


@pytest.mark.parametrize(
    ("x", "y"),
    [
        ([1.0, 2.0], 0),
        ([1.0], 0.5),
        ([1.0], None),
        ([[1.0]], 0),
        ([1], 0),
        ([float("nan")], 0),
        ([float("inf")], 0),
        ([1e300], 0),
        ([1.0], 1 << 40),
        (["text"], 0),
        ([1 + 2j], 0),
    ],
)
def test_a_sample_of_another_form_is_refused(store, x, y):
    """One form per store, finite numbers only; the store stays as it was."""
    store.add([1.5], 3)
    with pytest.raises(LayoutError):
        store.add(x, y)
    assert len(store) == 1


@pytest.mark.parametrize(
    ("found", "wanted", "fits"),
    [
        ((64,), (8, 8), True),
        ((8, 8), (64,), True),
        ((8, 8), (1, 8, 8), True),
        ((8, 8, 1), (1, 8, 8), True),
        ((), (1,), True),
        ((3, 4), (3, 4), True),
        ((48, 6), (6, 48), False),
        ((8, 8, 3), (3, 8, 8), False),
        ((2, 6), (3, 4), False),
        ((5,), (6,), False),
    ],
)
def test_rows_take_the_shape_of_a_graph_only_where_no_number_changes_its_place(found, wanted, fits):
    """Flat or not, with axes of length one or without; never axes in another order."""
    rows = np.arange(2 * np.prod(found, dtype=int), dtype=np.float32).reshape(2, *found)
    made = shaped(rows, wanted)
    assert (made is not None) is fits
    if made is not None:
        assert made.shape == (2, *wanted)
        assert np.array_equal(made.ravel(), rows.ravel())


def test_extend_takes_all_or_nothing(store):
    """A bad row in the middle, or labels of another length, add nothing."""
    with pytest.raises(LayoutError):
        store.extend([[1.0], [float("nan")], [2.0]], [1, 2, 3])
    with pytest.raises(LayoutError, match="one y for each x"):
        store.extend([[1.0], [2.0]], [1])
    with pytest.raises(LayoutError):
        store.extend(5.0)
    assert len(store) == 0
    assert store.extend(np.zeros((0, 4)), []) == []
    assert store.form is None


def test_samples_without_label(store):
    """Their ``y`` has no column, so that code that slices and stacks works the same."""
    store.extend(np.ones((50, 3), np.uint8))
    x, y = store.training().all()
    assert x.dtype == np.uint8
    assert y.shape == (len(x), 0)
    assert "no label" in str(store.form)


def test_an_emptied_store_takes_another_form(store):
    """The app changed its model: deleting all samples starts afresh."""
    one = store.add([1.0, 2.0], 1)
    store.delete(one)
    store.add([1.0], 0.5)
    assert str(store.form) == "x float32[1], y float32[]"


@pytest.mark.parametrize("limit", [1 << 30, 0], ids=["kept", "read by batch"])
def test_batches_hold_each_row_once_an_epoch_in_a_new_order(store, monkeypatch, limit):
    """The same whether the view fits into memory or is read batch by batch."""
    monkeypatch.setattr(stored_samples, "CACHED_BYTES", limit)
    store.extend(np.arange(1500)[:, np.newaxis] * 1.0, np.arange(1500))
    view = store.training()
    batches = list(view.batches(600, epochs=2, seed=7))
    per_epoch = -(-len(view) // 600)
    assert len(batches) == 2 * per_epoch
    assert all(np.array_equal(x.ravel(), y) for x, y in batches)
    epochs = [
        np.concatenate([y for _, y in batches[:per_epoch]]),
        np.concatenate([y for _, y in batches[per_epoch:]]),
    ]
    for rows in epochs:
        assert np.array_equal(np.sort(rows), view.all()[1])
    assert not np.array_equal(*epochs)
    again = np.concatenate([y for _, y in store.training().batches(600, epochs=2, seed=7)])
    assert np.array_equal(again, np.concatenate(epochs))
    other = np.concatenate([y for _, y in store.training().batches(600, epochs=2, seed=8)])
    assert not np.array_equal(again, other)


@pytest.mark.parametrize("limit", [1 << 30, 0], ids=["kept", "read by batch"])
def test_rows_that_vanish_under_a_view_are_left_out(store, monkeypatch, limit):
    """The app may delete or evict while the agent trains."""
    monkeypatch.setattr(stored_samples, "CACHED_BYTES", limit)
    ids = store.extend(np.zeros((60, 1)), np.arange(60))
    view = store.training()
    for sample_id in ids[10:]:
        store.delete(sample_id)
    seen = [int(label) for _, y in view.batches(8) for label in y]
    assert set(seen) <= set(range(10))
    assert len(seen) == len(store.training())


def test_an_empty_store_has_no_batches(store):
    """Nothing to train on is not an error here."""
    assert list(store.training().batches(4)) == []
    assert len(store.held_out()) == 0
    with pytest.raises(ValueError, match="at least one row"):
        list(store.training().batches(0))


def _add_many(path, start) -> None:
    with SampleStore(path, max_samples=10_000) as store:
        for number in range(start, start + 100):
            store.add([float(number)], number)


def test_several_processes_and_threads_at_once(tmp_path):
    """Every sample of every writer is there, while a reader counts along."""
    path = tmp_path / "samples.db"
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=_add_many, args=(path, start)) for start in (0, 1000)]
    for process in processes:
        process.start()
    with SampleStore(path) as store:
        threads = [
            threading.Thread(
                target=lambda first: [store.add([0.0], first + n) for n in range(50)], args=(first,)
            )
            for first in (2000, 3000)
        ]
        for thread in threads:
            thread.start()
        while any(process.is_alive() for process in processes):
            training, held_out = count_samples(path)
            assert 0 <= training + held_out <= 300
        for waited in (*processes, *threads):
            waited.join(60)
        assert [process.exitcode for process in processes] == [0, 0]
        wanted = [*range(100), *range(1000, 1100), *range(2000, 2050), *range(3000, 3050)]
        assert np.array_equal(everything(store), wanted)
        assert sum(count_samples(path)) == 300


def test_the_group_may_write(tmp_path):
    """The agent and the app are two users of one group, whatever their umask."""
    umask = os.umask(0o077)
    try:
        with SampleStore(tmp_path / "samples.db") as store:
            store.add([1.0])
            modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in tmp_path.iterdir()}
    finally:
        os.umask(umask)
    assert all(mode & 0o060 == 0o060 for mode in modes.values()), modes


def test_a_damaged_store_is_set_aside(tmp_path):
    """The app goes on; the old file is still there to be looked at."""
    path = tmp_path / "samples.db"
    path.write_bytes(b"not a database" * 500)
    with pytest.raises(StorageError):
        count_samples(path)
    with SampleStore(path) as store:
        store.add([1.0])
        assert store.set_aside is not None
        assert store.set_aside.read_bytes().startswith(b"not a database")
    assert sum(count_samples(path)) == 1


def spoil(path, column: str) -> None:
    """Overwrite a value of the first sample for training, as a bad sector does, behind everybody's back."""
    with closing(sqlite3.connect(path)) as db, db:
        first = "(SELECT min(sequence) FROM samples WHERE NOT held_out)"
        db.execute(f"UPDATE samples SET {column} = randomblob(length({column})) WHERE sequence = {first}")


@pytest.mark.parametrize("column", ["x", "y"])
def test_a_spoilt_sample_is_dropped_and_counted(store, column):
    """Nothing in sqlite tells it: a label from nowhere would end all training, a feature would spoil it."""
    store.extend(np.arange(100.0).reshape(50, 2), range(50))
    before = store.training().all()[1]
    spoil(store.path, column)
    x, y = store.training().all()
    assert np.array_equal(y, before[1:])
    assert np.array_equal(x[:, 0], 2.0 * y)
    assert (store.damaged, len(store)) == (1, 49)
    assert len(store.training()) == len(before) - 1
    assert count_samples(store.path) == (len(before) - 1, 50 - len(before))


def test_a_store_that_is_damaged_within_is_renewed_from_what_can_be_read(tmp_path):
    """Pages in its middle are overwritten: the call that finds it fails, the next one goes on with samples
    that are whole, in the parts they belong to."""
    path = tmp_path / "samples.db"
    with SampleStore(path) as store:
        store.extend(np.arange(40_000.0).reshape(400, 100), range(400))
        held_out = set(store.held_out().all()[1].tolist())
    with path.open("r+b") as file:
        for page in (10, 11, 20):
            file.seek(4096 * page)
            file.write(b"\xa5" * 4096)
    with SampleStore(path) as store:
        with pytest.raises(StorageError):
            store.training().all(), store.held_out().all()
        x, y = store.training().all()
        assert 200 < len(store) < 400
        assert np.array_equal(x[:, 0], 100.0 * y)
        assert not held_out & set(y.tolist())
        assert set(store.held_out().all()[1].tolist()) < held_out
        assert store.set_aside is not None
        whole = len(store)
        store.add(np.zeros(100), 7)
    assert sum(count_samples(path)) == whole + 1


def test_a_store_without_checksums_is_taken_as_it_is(tmp_path):
    """One of an older release goes on; what is added from now on has a checksum."""
    path = tmp_path / "samples.db"
    with SampleStore(path) as old:
        old.extend(np.zeros((40, 2)), range(40))
    with closing(sqlite3.connect(path)) as db, db:
        db.execute("ALTER TABLE samples DROP COLUMN checksum")
        db.execute("ALTER TABLE totals DROP COLUMN damaged")
    with SampleStore(path) as store:
        store.extend(np.zeros((40, 2)), range(40, 80))
        assert np.array_equal(everything(store), np.arange(80))
        with closing(sqlite3.connect(path)) as db:
            assert db.execute("SELECT count(checksum) FROM samples").fetchone() == (40,)


def test_no_store_yet_is_no_samples(tmp_path):
    """A device that was just set up waits for its app; looking makes no file."""
    assert count_samples(tmp_path / "none.db") == (0, 0)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "new.db").touch()
    assert count_samples(tmp_path / "new.db") == (0, 0)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("add"), st.integers(1, 5)), st.tuples(st.just("delete"), st.integers(0, 30))
        ),
        max_size=25,
    )
)
def test_the_totals_are_those_of_the_rows(tmp_path_factory, actions):
    """Whatever is added, deleted and evicted, in any order."""
    path = tmp_path_factory.mktemp("totals") / "samples.db"
    with SampleStore(path, max_samples=7) as store:
        ids: list[str] = []
        for verb, number in actions:
            if verb == "add":
                ids += store.extend(np.zeros((number, 2)), np.zeros(number, np.int32))
            elif number < len(ids):
                store.delete(ids[number])
        assert count_samples(path) == (len(store.training()), len(store.held_out()))
        row = store._db.execute("SELECT bytes, (SELECT total(size) FROM samples) FROM totals").fetchone()
        assert row[0] == row[1] == 12 * len(store)
