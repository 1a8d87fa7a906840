"""The artifacts in the zoo are what its code builds, byte for byte, and every runtime reproduces them."""

import numpy as np
import onnx
import onnx.reference
import pytest

from models.runtime import RUNTIMES
from models.runtime.choose import try_runtime
from models.zoo.__main__ import differences, main, readme
from models.zoo.catalogue import CATALOGUE, ZOO, find
from models.zoo.forward import Network
from models.zoo.recipes import RECIPES, build

NAMES = [model.name for model in CATALOGUE]


@pytest.mark.parametrize("name", NAMES)
def test_a_build_gives_the_bytes_that_are_here(name):
    """Whatever machine, NumPy or onnx: after a change of the builder, ``python -m models.zoo`` and commit."""
    assert differences(build(name), ZOO / find(name).place) == []


def test_a_changed_file_is_told_by_name(tmp_path, capsys):
    """A changed one, a missing one and one too many; nothing is mended on the way."""
    assert main(["digits-mlp", "--out", str(tmp_path)]) == 0
    assert main(["digits-mlp", "--out", str(tmp_path), "--check"]) == 0
    folder = tmp_path / "digits" / "mlp"
    (folder / "infer.onnx").write_bytes(b"changed")
    (folder / "weights.bin").unlink()
    (folder / "stranger").touch()
    capsys.readouterr()
    assert main(["digits-mlp", "--out", str(tmp_path), "--check"]) == 1
    told = capsys.readouterr().err.splitlines()
    assert told == [f"differs: {folder / name}" for name in ("infer.onnx", "stranger", "weights.bin")]
    assert (folder / "infer.onnx").read_bytes() == b"changed"


def test_every_model_has_a_recipe_and_every_recipe_a_model():
    """And the catalogue is in order."""
    assert sorted(RECIPES) == NAMES


@pytest.mark.parametrize("model", CATALOGUE, ids=lambda model: model.name)
def test_a_model_is_documented_as_it_is(model):
    """The README beside it tells its size as it is, where data come from and their licence, how it costs a
    device and how to get it."""
    text = (ZOO / model.task / "README.md").read_text()
    assert f"| `{model.name}` | {model.open().layout.size:,} |" in text
    assert readme(text, model.name, model.open()) == text
    assert "licence" in text
    assert 'make bench ARGS="--only zoo"' in text
    assert f"lichen models zoo {model.task}-" in text


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("name", NAMES)
def test_every_runtime_reproduces_the_golden_steps(name, runtime, installed):
    """Of the files as they lie here."""
    installed(runtime)
    assert try_runtime(runtime, find(name).open()).reason == ""


def test_the_zoo_is_small():
    """A device that installs the wheel gets all of it."""
    total = sum(path.stat().st_size for model in CATALOGUE for path in (ZOO / model.place).iterdir())
    assert total < 2_000_000


def test_layers_say_the_shapes_that_they_make():
    """Each value's shape is what ONNX infers, strides that leave a rest and grouped channels included."""
    net = Network("shapes", [3, 11, 6])
    value = net.conv("conv", net.x, 8, [4, 3], stride=[3, 2], pad=[2, 1], bias=False)
    value = net.batch_norm("batch", net.group_norm("group", value, 4))
    value = net.conv("depth", value, 8, [3, 1], pad=[1, 0], groups=8)
    value = net.conv_transpose("up", value, 2, [4, 3], stride=[2, 2], pad=[1, 0])
    value = net.max_pool("pool", net.activation("Tanh", "bent", value), [3, 2])
    value = net.gru("memory", net.reshape("steps", value, [2, 6]), 5)
    names = ("conv", "group", "batch", "depth", "up", "bent", "pool", "steps", "memory")
    declared = {name: net.shape(name) for name in names}
    model = onnx.shape_inference.infer_shapes(
        net.finish(net.linear("head", value, 2)), strict_mode=True, data_prop=True
    )
    inferred = {
        info.name: tuple(dim.dim_value for dim in info.type.tensor_type.shape.dim)[1:]
        for info in model.graph.value_info
    }
    assert {name: inferred[name] for name in declared} == declared


def test_a_recurrent_unit_is_the_one_of_the_paper():
    """Against its equations in plain NumPy, with PyTorch's form of the reset gate."""
    net = Network("gru", [2, 3], seed=5)
    model = net.finish(net.gru("memory", net.x, 4))
    tensors = {entry.name: onnx.numpy_helper.to_array(entry) for entry in model.graph.initializer}
    x = np.random.default_rng(0).standard_normal((6, 2, 3)).astype(np.float32)
    weight, recurrence = tensors["memory.weight"][0], tensors["memory.recurrence"][0]
    state = np.zeros((6, 4))
    for step in range(3):
        update, reset, new = np.split(x[:, :, step] @ weight.T, 3, axis=1)
        past = np.split(state @ recurrence.T, 3, axis=1)
        update, reset = (1 / (1 + np.exp(-gate - past[at])) for at, gate in enumerate((update, reset)))
        state = (1 - update) * np.tanh(new + reset * past[2]) + update * state
    (output,) = onnx.reference.ReferenceEvaluator(model).run(None, {"x": x})
    np.testing.assert_allclose(output, state, atol=1e-5)
