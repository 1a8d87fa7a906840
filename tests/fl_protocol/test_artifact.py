"""The artifact's manifest: canonical text, and nothing else is believed."""

import contextlib
import dataclasses
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fl_protocol.artifact import ArtifactManifest, Input, Parameter
from fl_protocol.blob import BlobRef
from fl_protocol.errors import ArtifactError

MANIFEST = ArtifactManifest(
    name="digits",
    loss="softmax_cross_entropy",
    metrics=("loss", "correct", "count"),
    optimizer="sgd",
    slots=("velocity",),
    hyper={"lr": 0.1, "momentum": 0.0},
    parameters=(
        Parameter(name="w", shape=(64, 10)),
        Parameter(name="b", shape=(10,)),
        Parameter(name="mean", shape=(64,), kind="buffer", role="frozen"),
        Parameter(name="head", shape=(10,), role="personal"),
    ),
    inputs=(Input(name="x", shape=(-1, 64), dtype="float32"), Input(name="y", shape=(-1,), dtype="int64")),
    files={"step.onnx": BlobRef.of(b"graph"), "weights.bin": BlobRef.of(bytes(200_000))},
    class_names=("zero", "one"),
    normalisation={"scale": 0.0625},
)


def changed(**changes: object) -> bytes:
    """The manifest's text with some entries replaced."""
    return json.dumps(json.loads(MANIFEST.to_json()) | changes).encode()


def test_the_text_is_canonical_and_reads_back():
    """The same manifest, the same bytes, the same identity."""
    text = MANIFEST.to_json()
    assert ArtifactManifest.from_json(text) == MANIFEST
    assert ArtifactManifest.from_json(text).to_json() == text
    assert text.endswith(b"\n")


def test_an_update_holds_trainable_parameters_only():
    """Frozen and personal ones do not travel up; trainable buffers do, behind all weights."""
    assert [tensor.name for tensor in MANIFEST.layout.tensors] == ["w", "b"]
    averaged = (
        Parameter(name="mean", shape=(64,), kind="buffer"),
        Parameter(name="var", shape=(64,), kind="buffer", role="personal"),
        *MANIFEST.parameters[:2],
    )
    layout = dataclasses.replace(MANIFEST, parameters=averaged).layout
    assert [(tensor.name, tensor.kind) for tensor in layout.tensors] == [
        ("w", "weight"),
        ("b", "weight"),
        ("mean", "buffer"),
    ]


def test_the_initial_weights_are_needed_for_what_does_not_travel():
    """Trainable weights and buffers come with every published model, the others in the file alone."""
    assert MANIFEST.needs_initial_weights
    trainable = (*MANIFEST.parameters[:2], Parameter(name="mean", shape=(64,), kind="buffer"))
    assert not dataclasses.replace(MANIFEST, parameters=trainable).needs_initial_weights


FILE = {"sha256": 64 * "0", "size": 5}
WEIGHT = {"name": "w", "shape": [1], "dtype": "float32", "kind": "weight", "role": "trainable"}


@pytest.mark.parametrize(
    "changes",
    [
        {"format": "lichen-artifact/2"},
        {"format": None},
        {"layout_fingerprint": 16 * "0"},
        {"hyper": {"lr": 10**400}},
        {"hyper": {"lr": "fast"}},
        {"parameters": []},
        {
            "parameters": [
                {"name": "w", "shape": [1], "dtype": "float64", "kind": "weight", "role": "trainable"}
            ]
        },
        {
            "parameters": [
                {"name": "w", "shape": [1], "dtype": "float32", "kind": "spell", "role": "trainable"}
            ]
        },
        {
            "parameters": [
                {"name": "w", "shape": [-1], "dtype": "float32", "kind": "weight", "role": "trainable"}
            ]
        },
        {"metrics": [1]},
        {"inputs": [{"name": "x", "shape": [-2], "dtype": "float32"}]},
        {"files": {"../step.onnx": FILE}},
        {"files": {".hidden": FILE}},
        {"files": {"": FILE}},
        {"files": {"a\0b": FILE}},
        {"files": {"manifest.json": FILE}},
        {"files": {"a": FILE | {"sha256": "00"}}},
        {"files": {"a": FILE | {"sha256": 64 * "G"}}},
        {"files": {"a": FILE | {"size": 200_000}}},
        {"files": {"a": FILE | {"size": 200_000, "chunks": [64 * "0"]}}},
        {"files": {"a": FILE | {"size": 100_000, "chunks": [64 * "0", 7]}}},
        {"files": {"a": FILE | {"size": 1 << 40}}},
    ],
)
def test_a_manifest_that_cannot_be_meant_is_refused(changes):
    """Paths out of the folder, hashes that are none, numbers that are none."""
    with pytest.raises(ArtifactError):
        ArtifactManifest.from_json(changed(**changes))


def test_a_parameter_that_occurs_twice_is_refused():
    """Frozen ones too: the second would win in silence."""
    twice = dataclasses.replace(MANIFEST, parameters=(*MANIFEST.parameters, MANIFEST.parameters[2]))
    with pytest.raises(ArtifactError, match="twice"):
        ArtifactManifest.from_json(twice.to_json())


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)


@given(st.sampled_from(sorted(json.loads(MANIFEST.to_json()))), JSON)
def test_any_value_in_any_place_is_read_or_refused(key, value):
    """In one way."""
    with contextlib.suppress(ArtifactError):
        ArtifactManifest.from_json(changed(**{key: value}))


@given(st.binary(max_size=200))
def test_any_bytes_are_refused(content):
    """In one way."""
    with pytest.raises(ArtifactError):
        ArtifactManifest.from_json(content)


@pytest.mark.parametrize("text", [b"[" * 100_000, b" " * (1 << 21), b'{"format": "\\ud800"}', b"1" * 5000])
def test_hostile_texts_are_refused(text):
    """Nesting, size, lone surrogates, endless numbers."""
    with pytest.raises(ArtifactError):
        ArtifactManifest.from_json(text)
