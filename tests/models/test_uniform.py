"""The random numbers that a graph makes: the same bits everywhere, and random enough."""

import contextlib

import numpy as np
import pytest

from models.build.graph import BATCH, WorkingGraph
from models.build.tflite import write_tflite
from models.build.uniform import SEEDS, uniform
from models.runtime.numpy_runtime import NumpyGraph
from models.runtime.onnx_reader import read_model

ROWS = 24


def graph_of(*sizes, stream="drop", at=0):
    """A graph of the inputs ``sample_weight`` and ``seed`` whose output is the numbers."""
    graph = WorkingGraph()
    weights = graph.input("sample_weight", [BATCH])
    count = graph.op("Cast", graph.op("Size", weights), to=graph.float_element)
    shape = [*sizes[:at], BATCH, *sizes[at:]]
    return graph.finish("g", ["sample_weight", "seed"], {"u": uniform(graph, shape, count, stream=stream)})


def draws(content, seed, rows=ROWS, *, precision=np.float32):
    """The numbers, in the numpy runtime."""
    feeds = {"sample_weight": np.ones(rows, np.float32), "seed": np.array(seed, np.float32)}
    return NumpyGraph(read_model(content), precision=precision)(feeds)["u"]


def standard(values, mean, variance):
    """How many standard errors the mean of values lies off."""
    return (np.mean(values) - mean) / np.sqrt(variance / np.size(values))


def signs(numbers):
    """-1 below a half, 1 above: a product of two that are independent has a mean of 0."""
    return np.where(numbers < 0.5, -1.0, 1.0)


@pytest.fixture(scope="module")
def many():
    """float32[400 seeds, 24 rows, 48 places]: neighbouring seeds from both ends, and some between."""
    content = graph_of(48)
    seeds = [*range(200), *range(SEEDS - 100, SEEDS), *(7 + 40_961 * np.arange(100))]
    return np.stack([draws(content, seed) for seed in seeds])


def test_the_numbers_are_uniform(many):
    """Mean, variance, and how many fall into each sixteenth, within five standard errors."""
    assert abs(standard(many, 0.5, 1 / 12)) < 5
    assert abs(standard((many - 0.5) ** 2, 1 / 12, 1 / 180)) < 5
    assert many.min() >= 0
    assert many.max() < 1
    shares = np.bincount((many * 16).astype(int).reshape(-1), minlength=16)
    assert abs((shares - many.size / 16) / np.sqrt(many.size / 16)).max() < 5


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("lag", [1, 2, 3, 8])
def test_neighbours_have_nothing_to_do_with_each_other(many, axis, lag):
    """Neither seeds nor rows nor places, and not two steps along two of them."""
    x = np.moveaxis(signs(many), axis, 0)
    assert abs(standard(x[:-lag] * x[lag:], 0, 1)) < 5
    assert abs(standard(x[:-lag, :-1] * x[lag:, 1:], 0, 1)) < 5


def test_no_two_places_go_together(many):
    """Every pair of a row's 48, over 9,600 rows; the worst of 1,128 pairs included."""
    x = signs(many).reshape(-1, many.shape[-1])
    correlation = (x.T @ x / np.sqrt(len(x)))[np.triu_indices(x.shape[1], 1)]
    assert np.abs(correlation).max() < 7
    assert np.mean(correlation**2) == pytest.approx(1, abs=0.25)


def test_each_place_is_drawn_as_often():
    """Over many seeds no unit is favoured: 32 units, 4,800 draws each."""
    content = graph_of(32)
    low = np.mean([draws(content, seed) < 0.25 for seed in range(200)], axis=(0, 1))
    assert np.abs(low - 0.25).max() < 5 * np.sqrt(0.25 * 0.75 / 4800)


def test_streams_have_nothing_in_common(many):
    """Two layers of one model drop other units."""
    content = graph_of(48, stream="other")
    other = np.stack([draws(content, seed) for seed in range(100)])
    assert abs(standard(signs(many[:100]) * signs(other), 0, 1)) < 5


def test_the_axes_of_an_image_have_nothing_to_do_with_each_other():
    """Channels, rows and columns share keys, which must not show."""
    content = graph_of(6, 5, 4)
    x = signs(np.stack([draws(content, seed) for seed in range(150)]))
    for moved in ((slice(1, None), slice(None)), (slice(None), slice(1, None))):
        other = x[:, :, moved[0], moved[1]]
        kept = x[:, :, : other.shape[2], : other.shape[3]]
        assert abs(standard(kept * other, 0, 1)) < 5


def test_a_row_does_not_depend_on_how_many_there_are():
    """A batch that is filled up has the numbers of its own rows."""
    content = graph_of(10)
    np.testing.assert_array_equal(draws(content, 99, rows=5), draws(content, 99, rows=32)[:5])


@pytest.mark.parametrize("seed", [0, 1, 2047, 2048, 1_234_567, SEEDS - 1])
def test_every_runtime_makes_the_same_bits(seed):
    """Also in double precision: nothing is ever rounded."""
    content = graph_of(7, 5)
    numbers = draws(content, seed)
    assert numbers.dtype == np.float32
    np.testing.assert_array_equal(draws(content, seed, precision=np.float64), numbers)
    feeds = {"sample_weight": np.ones(ROWS, np.float32), "seed": np.array(seed, np.float32)}
    for run in (in_onnxruntime, in_tflite):
        with contextlib.suppress(ImportError):
            np.testing.assert_array_equal(run(content, feeds), numbers)


def in_onnxruntime(content, feeds):
    """The numbers in ONNX Runtime."""
    import onnxruntime

    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    return session.run(None, feeds)[0]


def in_tflite(content, feeds):
    """The numbers in whichever of the two TFLite interpreters is here."""
    try:
        from ai_edge_litert.interpreter import Interpreter
    except ImportError:
        from tflite_runtime.interpreter import Interpreter

    content = write_tflite(content, signature="g", batch=ROWS)
    lite = Interpreter(model_content=content, num_threads=1)
    lite.allocate_tensors()
    for entry in lite.get_input_details():
        lite.set_tensor(entry["index"], next(it for name, it in feeds.items() if name in entry["name"]))
    lite.invoke()
    return lite.get_tensor(lite.get_output_details()[0]["index"])


def test_numbers_are_multiples_of_their_digits_and_frozen():
    """The first of seed 5: a change here is a change of what every device drops."""
    numbers = draws(graph_of(3), 5, rows=2) * SEEDS
    np.testing.assert_array_equal(numbers, np.round(numbers))
    assert numbers.astype(int).tolist() == [[3127065, 675893, 2579834], [2366714, 2956822, 3806043]]


def test_other_places_of_the_batch_and_none():
    """The rows may be any axis, or there may be none."""
    assert draws(graph_of(4, 3, at=1), 3, rows=6).shape == (4, 6, 3)
    assert draws(graph_of(), 3, rows=6).shape == (6,)
    graph = WorkingGraph()
    value = uniform(graph, [4, 3], None, stream="drop")
    run = NumpyGraph(read_model(graph.finish("g", ["seed"], {"u": value})))
    assert len(np.unique(run({"seed": np.array(3, np.float32)})["u"])) == 12
