"""Server optimizers with a memory, beside the formulas of the paper in float64."""

from dataclasses import replace

import numpy as np
import pytest

from broker_coordinator.aggregation.optimizer_registry import SERVER_OPTIMIZERS, server_optimizer_for
from broker_coordinator.books.audit import audit
from broker_coordinator.compatibility import OPTIMIZER_OPTIONS, USUAL_LR
from fl_protocol.errors import ConfigError

NAMES = ["momentum", "adagrad", "adam", "yogi"]


def reference(name, steps, *, lr, beta1=0.0, beta2=0.99, tau=1e-3):
    """Algorithm 2 of Reddi et al., from zero."""
    x, m, v = np.zeros((3, steps.shape[1]))
    for d in steps:
        m = beta1 * m + (1 - beta1) * d
        if name == "momentum":
            x = x + lr * m
            continue
        if name == "adagrad":
            v = v + d**2
        elif name == "adam":
            v = beta2 * v + (1 - beta2) * d**2
        else:
            v = v - (1 - beta2) * d**2 * np.sign(v - d**2)
        x = x + lr * m / (np.sqrt(v) + tau)
    return x


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("beta1", [0.0, 0.9])
def test_the_paper_s_steps(name, beta1):
    """Twenty of them, some of zero; nothing that was given is written to."""
    steps = np.random.default_rng(1).standard_normal((20, 50)) * 0.1
    steps[::3, :10] = 0
    options = {**OPTIMIZER_OPTIONS[name], "beta1": beta1}
    optimizer = server_optimizer_for(name, 0.05, options)
    master = np.zeros(50, np.float32)
    slots = {slot: np.zeros(50, np.float32) for slot in optimizer.slots}
    for step in steps.astype(np.float32):
        before, kept = master.copy(), {slot: value.copy() for slot, value in slots.items()}
        moved, after = optimizer.step(master, slots, step.copy())
        assert master.tobytes() == before.tobytes()
        assert all(slots[slot].tobytes() == kept[slot].tobytes() for slot in kept)
        assert {value.dtype for value in (moved, *after.values())} == {np.dtype(np.float32)}
        master, slots = moved, after
    assert master == pytest.approx(reference(name, steps, lr=0.05, **options), rel=1e-3, abs=1e-5)
    assert tuple(sorted(slots)) == optimizer.slots


@pytest.mark.parametrize("name", NAMES)
def test_versions_by_such_an_optimizer_replay(begin, small_rules, tmp_path, name):
    """Its slots travel in the version's state; an optimizer that comes later begins at zero."""
    plain = begin(tmp_path / "a", small_rules)
    plain.take(2)
    plain.close()
    plain.store.close()
    rules = replace(
        small_rules, optimizer=name, server_lr=USUAL_LR[name], optimizer_options=OPTIMIZER_OPTIONS[name]
    )
    history = begin(tmp_path / "a", rules)
    history.numbers = 2
    for _ in range(3):
        history.take(2)
        history.close()
    assert sorted(history.open.state.slots) == list(rules.make_optimizer().slots)
    history.store.close()
    report = audit(tmp_path / "a")
    assert (report.versions_checked, report.versions_ok) == (4, 4), report.faults


def test_tables_of_names_agree():
    """The configuration's names are those that exist, and its usual values theirs."""
    assert OPTIMIZER_OPTIONS.keys() == SERVER_OPTIMIZERS.keys() == USUAL_LR.keys()
    for name, options in OPTIMIZER_OPTIONS.items():
        assert server_optimizer_for(name, USUAL_LR[name], options) == SERVER_OPTIMIZERS[name]()
    for wrong in ({"beta1": 1.0}, {"tau": 0.0}, {"gamma": 1.0}):
        with pytest.raises(ConfigError):
            server_optimizer_for("adam", 0.1, wrong)
