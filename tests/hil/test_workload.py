"""A model and samples of one's own: what does not fit is said before anything starts."""

import numpy as np
import pytest

from fl_protocol.errors import ArtifactError, ConfigError
from hil.workload import headline, own_workload, zoo_workload
from models.build import build_artifact
from models.build.wrap import wrap_weights
from models.runtime import open_session
from models.zoo.command import DATASETS
from models.zoo.mlp import mlp

DRAW = np.random.default_rng(5)
X = DRAW.standard_normal((100, 6))
CLASSES = DRAW.integers(0, 3, 100)


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    """The folder of a model of six numbers and three classes."""
    folder = tmp_path_factory.mktemp("classifier")
    build_artifact(mlp((6, 4, 3), name="motion"), loss="softmax_cross_entropy", out=folder)
    return folder


@pytest.fixture(scope="module")
def regressor(tmp_path_factory):
    """The folder of a model of six numbers and one answer."""
    folder = tmp_path_factory.mktemp("regressor")
    build_artifact(mlp((6, 4, 1), name="pump"), loss="mse", out=folder)
    return folder


@pytest.fixture(scope="module")
def autoencoder(tmp_path_factory):
    """The folder of a model that answers with what it was given."""
    folder = tmp_path_factory.mktemp("autoencoder")
    build_artifact(mlp((6, 2, 6), name="auto"), loss="mse", out=folder)
    return folder


@pytest.fixture
def workload(tmp_path):
    """``workload(artifact, x=..., y=...)``: the arrays saved, and the workload of both."""

    def make(artifact, *, seed=0, **arrays):
        np.savez(tmp_path / "samples.npz", **arrays)
        return own_workload(tmp_path / "artifact", artifact, tmp_path / "samples.npz", seed=seed)

    return make


def test_a_fifth_is_held_out_by_seed_and_no_row_is_in_both(classifier, workload):
    """Every row once, as the graphs take it; the artifact is copied into the run's folder."""
    made = workload(classifier, x=X, y=CLASSES)
    assert (len(made.training), len(made.held_out)) == (80, 20)
    rows = np.concatenate([made.training.x, made.held_out.x])
    assert (rows.dtype, made.training.y.dtype) == (np.float32, np.int32)
    assert np.array_equal(np.sort(rows[:, 0]), np.sort(X[:, 0].astype(np.float32)))
    again, other = (workload(classifier, x=X, y=CLASSES, seed=seed) for seed in (0, 1))
    assert np.array_equal(made.held_out.x, again.held_out.x)
    assert not np.array_equal(made.held_out.x, other.held_out.x)
    assert made.artifact.path != classifier
    made.check(open_session(made.artifact)[0])


def test_samples_are_dealt_out_by_class_where_there_are_any(classifier, regressor, workload):
    """Unless something else was asked for."""
    made = workload(classifier, x=X, y=CLASSES)
    assert (made.scheme(None), made.scheme("iid")) == ("dirichlet:1.0", "iid")
    assert [len(share) for share in made.shares(2, scheme="iid", seed=0)] == [40, 40]
    assert workload(regressor, x=X, y=X[:, 0]).scheme(None) == "iid"


def test_rows_take_the_shape_of_the_graph(classifier, regressor, workload):
    """Flat or not, a number or a list of one: what has as many values fits."""
    assert workload(classifier, x=X.reshape(100, 2, 3), y=CLASSES[:, None]).training.y.shape == (80,)
    assert workload(regressor, x=X, y=X[:, 0]).training.y.shape == (80, 1)


def test_without_y_a_row_is_its_own_target_where_the_model_gives_it_back(autoencoder, regressor, workload):
    """An autoencoder needs no labels; another model does."""
    made = workload(autoencoder, x=X)
    assert np.array_equal(made.training.x, made.training.y)
    with pytest.raises(ConfigError, match="holds no y"):
        workload(regressor, x=X)


@pytest.mark.parametrize(
    ("arrays", "says"),
    [
        ({"y": CLASSES}, "holds no x"),
        ({"x": X[:, :5], "y": CLASSES}, r"rows of x have the shape \[5\], the model takes \[6\]"),
        ({"x": X[:99], "y": CLASSES}, "not as many rows"),
        ({"x": X, "y": CLASSES.astype(float)}, "y holds float32, the model takes int32"),
        ({"x": np.where(X > 2, np.nan, X), "y": CLASSES}, "NaN"),
        ({"x": np.array(["a"] * 100), "y": CLASSES}, "cannot be stored"),
    ],
)
def test_samples_that_are_not_the_models_are_refused_in_words(classifier, workload, arrays, says):
    """Which file, which array, what it is, and what it should be."""
    with pytest.raises(ConfigError, match=says):
        workload(classifier, **arrays)


@pytest.mark.parametrize("shift", [1, -1])
def test_a_class_that_the_model_cannot_tell_is_refused(classifier, workload, shift):
    """Found by running the model: its outputs are counted, nobody is asked for their number."""
    made = workload(classifier, x=X, y=CLASSES + shift)
    with pytest.raises(ConfigError, match="the model tells 3 apart") as caught:
        made.check(open_session(made.artifact)[0])
    assert caught.value.hint == "number the classes from 0 to 2"


def test_what_is_no_npz_or_no_artifact_is_refused(classifier, tmp_path):
    """A text file; a folder of something else; weights without graphs."""
    text = tmp_path / "samples.npz"
    text.write_text("1,2,3")
    with pytest.raises(ConfigError, match=r"samples\.npz: "):
        own_workload(tmp_path / "out", classifier, text, seed=0)
    with pytest.raises(ArtifactError, match="no training artifact"):
        own_workload(tmp_path / "out", tmp_path, text, seed=0)
    wrap_weights({"w": np.zeros((6, 3), np.float32)}, out=tmp_path / "bare")
    with pytest.raises(ConfigError, match="weights alone"):
        own_workload(tmp_path / "out", tmp_path / "bare", text, seed=0)


def test_the_headline_is_accuracy_else_the_first_metric_else_the_loss():
    """What a person looks at first."""
    assert headline(["top3", "accuracy"]) == "accuracy"
    assert headline(["mae"]) == "mae"
    assert headline([]) == "loss"


@pytest.mark.parametrize(
    ("name", "scheme"), [("digits", "dirichlet:1.0"), ("motion", "by-user"), ("shuttle", "iid")]
)
def test_data_of_the_zoo_fit_their_model_and_are_dealt_as_they_are(tmp_path, name, scheme):
    """Digits by class, motion a person a device, shuttle evenly; what is not fetched is told how to get."""
    if name in DATASETS and not DATASETS[name].path.exists():
        with pytest.raises(ConfigError, match=f"lichen models fetch {name}"):
            zoo_workload(name, tmp_path, hidden=32, seed=0, runtimes=("onnx",))
        return
    workload = zoo_workload(name, tmp_path, hidden=32, seed=0, runtimes=("onnx",))
    workload.check(open_session(workload.artifact)[0])
    assert workload.scheme(None) == scheme
    shares = workload.shares(8, scheme=None, seed=0)
    assert sum(map(len, shares)) == len(workload.training)
    if name == "motion":
        with pytest.raises(ConfigError, match="at most 8 devices"):
            workload.shares(9, scheme=None, seed=0)
        assert len(workload.shares(9, scheme="iid", seed=0)) == 9
