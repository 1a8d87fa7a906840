"""A fleet whose model has tensors of each device's own: who says how good it is, and with what."""

import json
from dataclasses import replace

import numpy as np
import pytest
from click.testing import CliRunner

from broker_coordinator import command
from broker_coordinator.command_words import status_lines
from broker_coordinator.evaluation import Evaluation
from fl_protocol.artifact import Parameter
from fl_protocol.blob import BlobRef
from models.runtime import TrainingArtifact


@pytest.fixture
def fleet(fleet_of, artifact):
    """The small model with a running mean of each device's own, measured by the coordinator."""
    manifest = artifact.manifest
    weights = artifact.read("weights.bin") + np.zeros(3, np.float32).tobytes()
    content = {name: artifact.read(name) for name in manifest.files} | {"weights.bin": weights}
    changed = replace(
        manifest,
        parameters=(*manifest.parameters, Parameter(name="mean", shape=(3,), kind="buffer", role="personal")),
        files=manifest.files | {"weights.bin": BlobRef.of(weights)},
    )

    def evaluate(weights):
        return Evaluation(source="coordinator", devices=0, examples=40, sums={"correct": 4.0, "loss": 80.0})

    return fleet_of(TrainingArtifact.of(changed, content)).start(evaluate=evaluate)


def test_the_coordinators_figures_say_what_they_lack(fleet):
    """It has no device's statistics: that is said with its accuracy, and so is what devices report."""
    fleet.contribute(fleet.device("d1"), fleet.device("d2"))
    figures = fleet.coordinator.figures()
    assert (figures.accuracy, figures.accuracy_source) == (0.1, "coordinator")
    assert "running statistics that the artifact came with" in figures.accuracy_caveat
    assert figures.reported == {"version": 0, "devices": 2, "examples": 20, "means": {"accuracy": 0.5}}
    path = fleet.folder / "run" / "status.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(figures.to_body()))
    shown = CliRunner().invoke(command.status, [str(fleet.folder)], env={"COLUMNS": "200"}).output
    assert "0.1000 at version 1, by the coordinator on 40 examples, with the running statistics" in shown
    assert "accuracy 0.5 at version 0, 2 devices on 20 examples" in shown
    table = CliRunner().invoke(command.versions, [str(fleet.folder)], env={"COLUMNS": "200"}).output
    assert "The coordinator measures with the running statistics that the artifact came with" in table


def test_a_loss_says_who_measured_it_too(fleet):
    """Models without an accuracy are no exception."""
    body = replace(fleet.coordinator.figures(), accuracy=None, accuracy_caveat="").to_body()
    lines = dict(status_lines({**body, "running": False}))
    assert lines["loss"] == "2 at version 0, by the coordinator on 40 examples"
    assert "devices say" not in lines
