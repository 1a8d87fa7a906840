"""`from_keras` with real models on the PyTorch back end."""

import keras
import numpy as np
import pytest
import torch
from keras import layers

import lichen
from fl_protocol.errors import ArtifactError, RuntimeUnavailable
from models.runtime import Batch, open_session, split_flat, zero_slots

pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation:DeprecationWarning"
)  # Keras' own arrays

FOR_ALL = ("onnx", "tflite")


def model(*parts, shape, dtype=None):
    """A Sequential whose names do not depend on the tests before."""
    keras.utils.clear_session()
    keras.utils.set_random_seed(3)
    return keras.Sequential([keras.Input(shape, dtype=dtype), *parts], name="net")


def dense():
    """Two dense layers."""
    return model(layers.Dense(32, activation="relu"), layers.Dense(4), shape=(20,))


def convolutions():
    """Strides, groups, and a normalisation without running statistics."""
    return model(
        layers.Conv2D(8, 3, padding="same", activation="relu"),
        layers.MaxPooling2D(),
        layers.Conv2D(16, 3, strides=2, padding="same"),
        layers.GroupNormalization(4),
        layers.Activation("gelu"),
        layers.GlobalAveragePooling2D(),
        layers.Dense(4),
        shape=(12, 12, 1),
    )


def recurrent():
    """A GRU, which Keras unrolls."""
    return model(layers.GRU(6), layers.Dense(4), shape=(6, 3))


def attention():
    """Attention of two heads, with what Keras writes as einsum."""
    keras.utils.clear_session()
    keras.utils.set_random_seed(3)
    x = keras.Input((6, 8))
    h = layers.LayerNormalization()(x + layers.MultiHeadAttention(2, 4)(x, x))
    return keras.Model(x, layers.Dense(4)(layers.Flatten()(h)), name="net")


FAMILIES = {"dense": dense, "convolutions": convolutions, "gru": recurrent, "attention": attention}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_trains_on_every_runtime_as_in_keras(family, runtimes_of, losses_of):
    """Five steps of Keras' own SGD with momentum: the same losses; weights by Keras' own paths."""
    net = FAMILIES[family]()
    draw = np.random.default_rng(4)
    x = draw.standard_normal((16, *net.input_shape[1:])).astype(np.float32)
    y = draw.integers(0, 4, 16).astype(np.int32)
    artifact = lichen.from_keras(net, loss="softmax_cross_entropy", runtimes=FOR_ALL)
    assert [tensor.name for tensor in artifact.layout.tensors] == [it.path for it in net.trainable_variables]
    net.compile(
        keras.optimizers.SGD(0.05, momentum=0.9), keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    )
    theirs = [float(net.train_on_batch(x, y)) for _ in range(5)]
    assert theirs[-1] < theirs[0]
    for runtime in runtimes_of(artifact):
        ours, _ = losses_of(artifact, runtime, x, y)
        np.testing.assert_allclose(ours, theirs, atol=1e-5, rtol=0, err_msg=runtime)


def normalised():
    """Batch normalisation with and without scale, depthwise convolution, dropout, softmax at the end."""
    return model(
        layers.Conv2D(8, 3, strides=2, padding="same"),
        layers.BatchNormalization(),
        layers.ReLU(6.0),
        layers.DepthwiseConv2D(3, padding="same"),
        layers.BatchNormalization(scale=False, momentum=0.9),
        layers.Flatten(),
        layers.Dropout(0.4),
        layers.Dense(4, activation="softmax"),
        shape=(8, 8, 3),
    )


def test_batch_normalisation_and_dropout_work_in_training(runtimes_of):
    """Moving statistics are buffers and move by Keras' momentum; units are dropped by the seed."""
    net = normalised()
    artifact = lichen.from_keras(net, loss="softmax_cross_entropy", runtimes=FOR_ALL)
    runtimes_of(artifact)
    kinds = {entry.name: entry.kind for entry in artifact.manifest.parameters}
    statistics = {it.path for it in net.non_trainable_variables if "moving" in it.path}
    assert {name for name, kind in kinds.items() if kind == "buffer"} == statistics
    assert len(statistics) == 4
    session, _ = open_session(artifact)
    weights = split_flat(artifact.initial_weights(), artifact.layout)
    x = np.random.default_rng(4).standard_normal((16, 8, 8, 3)).astype(np.float32)
    batch = Batch.of(x, np.zeros(16, np.int32))
    one, two = (
        session.step(weights, zero_slots(artifact), batch, {"seed": seed}, weights) for seed in (1, 2)
    )
    assert one.sums["loss"] != two.sums["loss"]
    features = keras.ops.convert_to_numpy(net.layers[0](x))
    wanted = 0.01 * features.mean((0, 1, 2))
    moved = one.weights["net/batch_normalization/moving_mean"]
    np.testing.assert_allclose(moved, wanted, atol=1e-6)
    with torch.no_grad():
        predicted = net(x).numpy()
    np.testing.assert_allclose(session.infer(weights, x), predicted, atol=1e-5)


def test_what_keras_does_not_train_is_frozen():
    """``layer.trainable = False`` says so; a normalisation among them keeps its statistics as they are."""
    net = normalised()
    for layer in net.layers[:-1]:
        layer.trainable = False
    artifact = lichen.from_keras(net, loss="softmax_cross_entropy")
    roles = {entry.name: entry.role for entry in artifact.manifest.parameters}
    assert {name for name, role in roles.items() if role == "trainable"} == {
        "net/dense/kernel",
        "net/dense/bias",
    }
    assert set(roles.values()) == {"trainable", "frozen"}


def test_the_model_is_left_as_it_was():
    """It still trains as Keras' own layers do, and from the weights that it had."""
    net = normalised()
    before = [np.array(it) for it in net.get_weights()]
    lichen.from_keras(net, loss="softmax_cross_entropy")
    assert all("call" not in vars(layer) for layer in net.layers)
    assert all(np.array_equal(a, b) for a, b in zip(before, net.get_weights(), strict=True))
    net.compile(keras.optimizers.SGD(0.1), keras.losses.SparseCategoricalCrossentropy())
    net.train_on_batch(np.zeros((4, 8, 8, 3), np.float32), np.zeros(4, np.int32))


def test_ids_go_in_as_integers(runtimes_of):
    """An embedding's input is int32 on every runtime."""
    parts = [layers.Embedding(30, 6), layers.GlobalAveragePooling1D(), layers.Dense(4)]
    net = model(*parts, shape=(10,), dtype="int32")
    artifact = lichen.from_keras(net, loss="softmax_cross_entropy", runtimes=FOR_ALL)
    assert artifact.manifest.inputs[0].dtype == "int32"
    runtimes_of(artifact)


def two_outputs():
    """A model with two heads."""
    x = keras.Input((6,))
    return keras.Model(x, [layers.Dense(2)(x), layers.Dense(3)(x)])


def held_back():
    """A layer whose own path to the output Keras does not differentiate."""
    keras.utils.clear_session()
    x = keras.Input((6,))
    h = layers.Dense(3, name="dense")(x)
    return keras.Model(x, h * layers.Lambda(keras.ops.stop_gradient)(keras.ops.sigmoid(h)), name="net")


REFUSED = {
    "a gradient that is held back": (held_back, "trained otherwise than by Keras", "freeze whole parameters"),
    "no input": (lambda: keras.Sequential([layers.Dense(3)]), "what its input is", "keras.Input"),
    "a free size": (lambda: model(layers.Dense(3), shape=(None, 6)), "[None, None, 6]", "keras.Input"),
    "two outputs": (two_outputs, "2 outputs", "keras.Model"),
    "noise": (
        lambda: model(layers.GaussianNoise(0.1), layers.Dense(3), shape=(6,)),
        "GaussianNoise",
        "Dropout",
    ),
    "dropout inside": (
        lambda: model(layers.GRU(4, dropout=0.2), shape=(5, 3)),
        "dropout=0.2",
        "Dropout layer",
    ),
    "a regularizer": (
        lambda: model(layers.Dense(3, kernel_regularizer="l2"), shape=(6,)),
        "regularizers",
        "adamw",
    ),
    "a constraint": (
        lambda: model(layers.Dense(3, kernel_constraint="non_neg"), shape=(6,)),
        "net/dense/kernel has a constraint",
        "remove",
    ),
    "half precision": (
        lambda: model(layers.Dense(3, dtype="mixed_float16"), shape=(6,)),
        "computes in float16",
        "set_dtype_policy",
    ),
    "no Keras model": (lambda: torch.nn.Linear(6, 3), "not a Keras 3 model", "Keras 3"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_an_artifact_would_train_otherwise_is_refused(case):
    """The message names the layer, the hint what to do."""
    make, reason, hint = REFUSED[case]
    with pytest.raises(ArtifactError) as caught:
        lichen.from_keras(make(), loss="softmax_cross_entropy")
    assert reason in str(caught.value.args[0])
    assert hint in caught.value.hint


def test_keras_on_something_else_is_refused(monkeypatch):
    """It would export another model: biases gone, normalisations folded."""
    monkeypatch.setattr(keras.config, "backend", lambda: "tensorflow")
    with pytest.raises(RuntimeUnavailable) as caught:
        lichen.from_keras(dense(), loss="softmax_cross_entropy")
    assert "Keras runs on tensorflow here" in str(caught.value.args[0])
    assert "KERAS_BACKEND=torch" in caught.value.hint
