"""A fleet whose model has averaged running statistics: on the wire, in versions, over restarts."""

import hashlib
from dataclasses import replace

import numpy as np
import pytest

from broker_coordinator.books.export import export_version
from broker_coordinator.configuration import UpdateTable
from fl_protocol.artifact import Parameter
from fl_protocol.blob import BlobRef
from fl_protocol.codec import codec_for, codec_seed, decode_model
from models.runtime import TrainingArtifact

MEAN, VARIANCE = np.zeros(300, np.float32), np.ones(300, np.float32)


@pytest.fixture(scope="module")
def with_buffers(artifact, tmp_path_factory):
    """The small model with two buffers, the first of them at the head of the parameters."""
    manifest = artifact.manifest
    weights = MEAN.tobytes() + artifact.read("weights.bin") + VARIANCE.tobytes()
    content = {name: artifact.read(name) for name in manifest.files} | {"weights.bin": weights}
    parameters = (
        Parameter(name="mean", shape=(300,), kind="buffer"),
        *manifest.parameters,
        Parameter(name="var", shape=(300,), kind="buffer"),
    )
    files = manifest.files | {"weights.bin": BlobRef.of(weights)}
    changed = replace(manifest, parameters=parameters, files=files)
    return TrainingArtifact.of(changed, content).save(tmp_path_factory.mktemp("buffers") / "artifact")


@pytest.fixture
def fleet(fleet_of, with_buffers):
    """A running fleet of that model."""
    return fleet_of(with_buffers).start()


def update_of(fleet, device, mean: float, var: float, **changes):
    """An update whose buffers move by constants."""
    update_id, header, payload = device.make(fleet.layout, **changes)
    weights = np.full(fleet.layout.weight_size, 0.01, np.float32)
    delta = np.concatenate([weights, np.full(300, mean, np.float32), np.full(300, var, np.float32)])
    payload = codec_for(header.codec).encode(delta, fleet.layout, codec_seed(update_id))
    return sealed(update_id, header, payload)


def sealed(update_id, header, payload):
    """The update with the size and hash of its payload."""
    digest = hashlib.sha256(payload).digest()
    return update_id, replace(header, size=len(payload), sha256=digest), payload


def published(fleet, device) -> dict[str, np.ndarray]:
    """What a device makes of the newest weights, by name."""
    flat = decode_model(fleet.fetched(device, device.manifest.weights), fleet.layout)
    return {
        tensor.name: flat[start : start + tensor.size].reshape(tensor.shape)
        for tensor, start in fleet.layout.offsets()
    }


def test_buffers_travel_down_behind_the_weights_and_exactly(fleet, with_buffers):
    """Version 0 is the artifact's; nothing of it is in ``weights.bin`` alone, so that file stays home."""
    device = fleet.device("d1")
    assert [tensor.name for tensor in fleet.layout.tensors][-2:] == ["mean", "var"]
    assert published(fleet, device)["var"].tolist() == VARIANCE.tolist()
    assert fleet.fetched(device, with_buffers.manifest.files["weights.bin"]) is None


@pytest.mark.parametrize("codec", ["float32", "int8", "eden(bits=1)", "eden(bits=1,keep=0.25)"])
def test_statistics_of_devices_become_their_mean(fleet_of, with_buffers, codec):
    """By examples, to float16's precision, whatever the weights' codec; and the books balance."""
    fleet = fleet_of(with_buffers, update=UpdateTable(codec=codec)).start()
    devices = [fleet.device(f"d{number}") for number in range(2)]
    for device, update in zip(devices, ((0.5, -0.25, 30), (1.5, 0.75, 10)), strict=True):
        mean, var, count = update
        device.begin(*update_of(fleet, device, mean, var, num_examples=count))
    fleet.settle()
    assert fleet.coordinator.version.number == 1
    weights = published(fleet, devices[0])
    assert weights["mean"] == pytest.approx(0.75)
    assert weights["var"] == pytest.approx(1.0)
    assert fleet.books().versions_ok == 1


def test_a_restart_in_the_middle_of_a_version_changes_nothing(fleet, tmp_path):
    """The accumulator of the buffers is rebuilt from the journal, the export has them by name."""
    devices = [fleet.device(f"d{number}") for number in range(2)]
    devices[0].begin(*update_of(fleet, devices[0], 0.5, 0.5))
    fleet.settle()
    fleet.crash()
    fleet.start()
    devices[1].begin(*update_of(fleet, devices[1], 1.0, 1.0))
    fleet.settle()
    assert fleet.books().versions_ok == 1
    exported = export_version(fleet.store, fleet.folder, tmp_path / "out.npz")
    with np.load(exported.path) as arrays:
        assert arrays["mean"] == pytest.approx(0.75)
        assert arrays["var"] == pytest.approx(1.75)


def test_a_statistic_that_is_not_finite_is_refused(fleet):
    """With the reason ``codec``; nothing of the update counts."""
    device = fleet.device("d1")
    update_id, header, payload = update_of(fleet, device, 0.5, 0.5)
    device.begin(*sealed(update_id, header, payload[:-1] + b"\x7c"))
    fleet.settle()
    assert (device.last(update_id).state, device.last(update_id).reason) == ("refused", "codec")
    assert fleet.coordinator.version.number == 0


def test_an_update_without_its_buffers_is_refused(fleet):
    """A device that took them for its own sends too little."""
    device = fleet.device("d1")
    update_id, header, payload = update_of(fleet, device, 0.5, 0.5)
    device.begin(*sealed(update_id, header, payload[: 4 * fleet.layout.weight_size]))
    fleet.settle()
    assert (device.last(update_id).state, device.last(update_id).reason) == ("refused", "codec")
