"""``lichen new``: a project folder whose simulation runs at once, to put one's own data and model into."""

from pathlib import Path

import click

from fl_protocol.errors import ConfigError
from fl_protocol.topics import valid_name

__all__ = ["FILES", "new", "write_project"]

_SCENARIO = """\
# lichen simulate scenario.toml
summary = "a first fleet"
model = "digits-mlp"              # or an artifact's folder, as lichen models build makes it
own = "my_data:devices"           # what each device has
evaluation = "my_data:evaluation" # what versions are measured with; without it devices hold out a fifth
devices = 50
versions = 30

[classes.phone]                   # half of them phones, half boards; step_s, link and more can be set here
[classes.pi]

[fleet.plan]                      # tables of fleet.toml
epochs = 2
batch_size = 16
lr = 0.3

[fleet.buffer]
size = 10
"""

_MY_DATA = '''\
"""The data of NAME. The digits stand in for yours: whatever yields arrays of rows will do."""

import numpy as np

from models.zoo import digits


def devices(n, seed):
    """(x, y) for each of n devices: x as the model takes it, here float32[rows, 64]; y the number of a class.

    The same seed must give the same data. Here each device has seen four of the ten digits.
    """
    training, _ = digits.split(seed=0)
    chance = np.random.default_rng(seed)
    for _ in range(n):
        seen = np.flatnonzero(np.isin(training.y, chance.choice(10, 4, replace=False)))
        rows = chance.choice(seen, 60)
        yield training.x[rows], training.y[rows]


def evaluation():
    """(x, y) that no device trains on."""
    _, held_out = digits.split(seed=0)
    return held_out.x, held_out.y
'''

_README = """\
# NAME

    lichen simulate scenario.toml --out runs

runs a fleet of virtual devices on the data of `my_data.py`, and writes `runs/scenario.html` and the
coordinator's state beside it. Then change one thing at a time:

- `my_data.py`: `devices` yields what each device has, `evaluation` what the model is measured with.
- `scenario.toml`: the model, kinds of devices, when they are on, and all that `fleet.toml` can say.
- `lichen simulate scenario.toml --set fleet.buffer.size=20 --devices 500` tries something without an edit.

The same settings, under `[plan]`, `[buffer]` and so on, are those of a real fleet's `fleet.toml`.
"""

FILES = {"scenario.toml": _SCENARIO, "my_data.py": _MY_DATA, "README.md": _README}
"""What a project consists of; ``NAME`` stands for its name."""


def write_project(folder: Path) -> None:
    """Write a project into a folder that is not there yet, or is empty.

    Raises:
        ConfigError: it holds something, cannot be made, or its name is none for a fleet.
    """
    name = folder.absolute().name
    if not valid_name(name):
        raise ConfigError(f"{name!r} is no name for a project", hint="use 1 to 64 of A-Z a-z 0-9 . _ -")
    try:
        if folder.exists() and any(folder.iterdir()):
            raise ConfigError(f"{folder} is not empty", hint="name a folder that is not there yet")
        folder.mkdir(parents=True, exist_ok=True)
        for file, text in FILES.items():
            (folder / file).write_text(text.replace("NAME", name), encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"cannot write {folder}: {error.strerror}") from None


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("folder", type=click.Path(path_type=Path), metavar="NAME")
def new(*, folder: Path) -> None:
    """Begin a project: a folder with a scenario that runs at once, and the data to replace by yours."""
    write_project(folder)
    click.echo(f"wrote {', '.join(str(folder / file) for file in FILES)}")
    click.echo(f"next: cd {folder} && lichen simulate scenario.toml --out runs")
