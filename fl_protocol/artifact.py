"""The manifest of a training artifact: what ``manifest.json`` says, and nothing else.

A training artifact is a folder of ordinary inference graphs, weights in and weights out, and this
manifest. It is immutable; the sha256 of ``manifest.json`` is its identity, and that file names the
sha256 of every other one.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fl_protocol.blob import MAX_BLOB_BYTES, BlobRef
from fl_protocol.errors import ArtifactError, LayoutError, MessageError
from fl_protocol.fields import Fields
from fl_protocol.layout import KINDS, MAX_TENSORS, TensorLayout, TensorSpec

__all__ = ["FORMAT", "MANIFEST_NAME", "MAX_MANIFEST_BYTES", "ArtifactManifest", "Input", "Parameter"]

FORMAT = "lichen-artifact/1"
MANIFEST_NAME = "manifest.json"
MAX_MANIFEST_BYTES = 1 << 20
MAX_FILES = 32
_FILE_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,63}")
ROLES = ("trainable", "frozen", "personal")


@dataclass(frozen=True, slots=True, kw_only=True)
class Parameter:
    """One tensor of the model: ``kind`` weight | buffer, ``role`` trainable | frozen | personal."""

    name: str
    shape: tuple[int, ...]
    kind: str = "weight"
    role: str = "trainable"


@dataclass(frozen=True, slots=True, kw_only=True)
class Input:
    """One input of the graphs besides the weights; dimension 0 is the batch, written -1 where free."""

    name: str
    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ArtifactManifest:
    """All that a device must know to train: parameters in wire order, inputs, loss, hyper-parameters.

    ``files`` maps a file name to its blob reference. ``hyper`` holds the scalar inputs of the step graph
    with their defaults. ``slots`` are the optimizer's state tensors per trained weight (zero at the
    start of each participation, never sent).
    """

    name: str
    loss: str
    metrics: tuple[str, ...]
    optimizer: str
    slots: tuple[str, ...]
    hyper: Mapping[str, float]
    parameters: tuple[Parameter, ...]
    inputs: tuple[Input, ...]
    files: Mapping[str, BlobRef]
    class_names: tuple[str, ...] = ()
    normalisation: Mapping[str, float] = field(default_factory=dict)

    @property
    def layout(self) -> TensorLayout:
        """The layout of an update: trainable weights in wire order, then trainable buffers."""
        travelling = [parameter for parameter in self.parameters if parameter.role == "trainable"]
        return TensorLayout(
            tuple(
                TensorSpec(name=parameter.name, shape=parameter.shape, kind=kind)
                for kind in KINDS
                for parameter in travelling
                if parameter.kind == kind
            )
        )

    @property
    def needs_initial_weights(self) -> bool:
        """Whether some parameter is in ``weights.bin`` alone, being no part of the layout."""
        return any(parameter.role != "trainable" for parameter in self.parameters)

    def to_json(self) -> bytes:
        """The canonical bytes of ``manifest.json``: sorted keys, two spaces, a final newline."""
        body = {
            "format": FORMAT,
            "name": self.name,
            "loss": self.loss,
            "metrics": list(self.metrics),
            "optimizer": self.optimizer,
            "slots": list(self.slots),
            "hyper": dict(self.hyper),
            "parameters": [
                {"name": p.name, "shape": list(p.shape), "dtype": "float32", "kind": p.kind, "role": p.role}
                for p in self.parameters
            ],
            "layout_fingerprint": self.layout.fingerprint.hex(),
            "inputs": [{"name": i.name, "shape": list(i.shape), "dtype": i.dtype} for i in self.inputs],
            "class_names": list(self.class_names),
            "normalisation": dict(self.normalisation),
            "files": {name: _file_entry(ref) for name, ref in sorted(self.files.items())},
        }
        return (json.dumps(body, indent=2, sort_keys=True) + "\n").encode()

    @classmethod
    def from_json(cls, text: bytes) -> "ArtifactManifest":
        """Read and check ``manifest.json``.

        Raises:
            ArtifactError: too large, not JSON, a field missing or ill-typed, another format, or a
                fingerprint that does not belong to the parameters.
        """
        if len(text) > MAX_MANIFEST_BYTES:
            raise ArtifactError(f"an artifact manifest of {len(text)} bytes, more than {MAX_MANIFEST_BYTES}")
        try:
            fields = Fields(json.loads(text))
            if fields.text("format") != FORMAT:
                raise ArtifactError(
                    f"artifact format {fields.text('format')!r} is not {FORMAT!r}",
                    hint="build the artifact again with this version of lichen, or update the agent",
                )
            manifest = cls(
                name=fields.text("name"),
                loss=fields.text("loss"),
                metrics=_texts(fields, "metrics"),
                optimizer=fields.text("optimizer"),
                slots=_texts(fields, "slots"),
                hyper=fields.numbers("hyper"),
                parameters=tuple(
                    _parameter(Fields(entry)) for entry in fields.array("parameters", most=MAX_TENSORS)
                ),
                inputs=tuple(_input(Fields(entry)) for entry in fields.array("inputs", most=64)),
                files=_files(fields),
                class_names=_texts(fields, "class_names"),
                normalisation=fields.numbers("normalisation"),
            )
            if len({parameter.name for parameter in manifest.parameters}) != len(manifest.parameters):
                raise ArtifactError("a parameter's name occurs twice in the artifact")
            if manifest.layout.fingerprint.hex() != fields.text("layout_fingerprint"):
                raise ArtifactError("the artifact's fingerprint does not belong to its parameters")
        except (ValueError, RecursionError, MessageError, LayoutError) as error:
            raise ArtifactError(f"not an artifact manifest: {error}") from None
        return manifest


def _file_entry(ref: BlobRef) -> dict[str, Any]:
    entry: dict[str, Any] = {"sha256": ref.sha256.hex(), "size": ref.size}
    if len(ref.chunks) > 1:
        entry["chunks"] = [chunk.hex() for chunk in ref.chunks]
    return entry


def _files(fields: Fields) -> dict[str, BlobRef]:
    files = {}
    for name, entry in fields.mapping("files", most=MAX_FILES).items():
        if _FILE_NAME.fullmatch(name) is None or name == MANIFEST_NAME:
            raise MessageError(f"file name {name[:64]!r} is not a plain name")
        sha256 = _sha256(entry.text("sha256"))
        chunks = tuple(_sha256(chunk) for chunk in entry.array("chunks")) if "chunks" in entry else (sha256,)
        ref = BlobRef(sha256=sha256, size=entry.integer("size", high=MAX_BLOB_BYTES), chunks=chunks)
        if len(chunks) != ref.chunk_count:
            raise MessageError(f"file {name!r}: the chunk hashes do not match the size")
        files[name] = ref
    return files


def _sha256(text: object) -> bytes:
    if not isinstance(text, str) or re.fullmatch(r"[0-9a-f]{64}", text) is None:
        raise MessageError("a sha256 is 64 lower-case hex digits")
    return bytes.fromhex(text)


def _texts(fields: Fields, key: str) -> tuple[str, ...]:
    values = tuple(fields.array(key, most=1024))
    if not all(isinstance(value, str) and len(value) <= 128 for value in values):
        raise MessageError(f"{key!r} must be a list of short texts")
    return values


def _shape(fields: Fields, *, low: int) -> tuple[int, ...]:
    dims = tuple(fields.array("shape", most=8))
    if not all(type(dim) is int and low <= dim < 1 << 31 for dim in dims):
        raise MessageError("'shape' must be a list of positive integers")
    return dims


def _parameter(fields: Fields) -> Parameter:
    kind, role = fields.text("kind"), fields.text("role")
    if kind not in KINDS or role not in ROLES or fields.text("dtype") != "float32":
        raise MessageError(f"parameter {fields.text('name')!r}: unknown kind, role or dtype")
    return Parameter(name=fields.text("name"), shape=_shape(fields, low=1), kind=kind, role=role)


def _input(fields: Fields) -> Input:
    return Input(name=fields.text("name"), shape=_shape(fields, low=-1), dtype=fields.text("dtype"))
