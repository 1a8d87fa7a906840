"""Emulation without emulation: what runs inside, and what is said where nothing can be emulated.

The real thing takes minutes and root's rights: ``make test-aarch64``.
"""

import json
import platform
import sys

import pytest

from hil.emulation import inside, root
from hil.emulation.__main__ import main
from hil.emulation.machines import MACHINES
from models.build import build_artifact
from models.zoo.mlp import mlp


def test_inside_every_artifact_meets_every_runtime(tmp_path, capsys):
    """A line on the machine, then golden steps; an artifact without its graphs has a reason."""
    for name in ("one", "two"):
        build_artifact(mlp((5, 4, 3), name=name), loss="softmax_cross_entropy", out=tmp_path / "deep" / name)
    assert inside.main([str(tmp_path), "numpy", "litert"]) == 0
    about, *trials = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert (about["machine"], about["byteorder"]) == (platform.machine(), sys.byteorder)
    assert [(trial["artifact"], trial["runtime"]) for trial in trials] == [
        ("one", "numpy"),
        ("one", "litert"),
        ("two", "numpy"),
        ("two", "litert"),
    ]
    assert trials[0]["deviation"] < 1e-5
    assert "holds no graphs" in trials[1]["reason"]


def test_what_is_missing_is_said_before_anything_is_tried(tmp_path, monkeypatch, capsys):
    """Exit code 2, and the packages to install."""
    monkeypatch.setattr(root.shutil, "which", lambda name: None)
    monkeypatch.setattr(root.os, "geteuid", lambda: 1000)
    assert main(["aarch64", "--root", str(tmp_path / "roots")]) == 2
    said = capsys.readouterr().err
    assert "root's rights" in said
    assert "apt-get install mmdebstrap qemu-user-static" in said
    assert not (tmp_path / "roots").exists()


def test_a_machine_that_nobody_described_is_refused_by_name(capsys):
    """With those that there are."""
    with pytest.raises(SystemExit):
        main(["vax"])
    assert "no machine vax: name some of aarch64, armhf, s390x" in capsys.readouterr().err


def test_each_machine_is_asked_for_runtimes_that_its_wheels_bring():
    """A runtime without its package would be reported as a fault of the machine."""
    packages = {"onnx": "onnxruntime", "litert": "ai-edge-litert", "tflite": "tflite-runtime"}
    for machine in MACHINES.values():
        for site in machine.sites:
            brought = " ".join(site.requirements)
            assert all(packages.get(runtime, "") in brought for runtime in site.runtimes), machine.name
