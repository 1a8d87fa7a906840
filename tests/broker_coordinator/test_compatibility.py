"""What does not go together is refused as FLEET.toml is read, with the nearest value that does."""

import pytest

from broker_coordinator.aggregation.aggregator_registry import AGGREGATORS, aggregator_for
from broker_coordinator.compatibility import AGGREGATOR_OPTIONS, beyond_retention
from broker_coordinator.configuration import read_fleet
from fl_protocol.errors import ConfigError

HEAD = 'fleet = "lab"\nstate = "state"\nartifact = "artifact"\n'


@pytest.fixture
def read(tmp_path):
    """``read(tables)``: the configuration of a file with those tables."""

    def reading(tables):
        path = tmp_path / "fleet.toml"
        path.write_text(HEAD + tables)
        return read_fleet(path)

    return reading


@pytest.mark.parametrize(
    ("tables", "nearest"),
    [
        (
            '[aggregator]\nkind = "median"\n[update]\ncodec = "eden(bits=1,keep=0.25)"\n',
            "nearest is codec = 'eden(bits=1)'",
        ),
        (
            '[aggregator]\nkind = "krum"\n[update]\ncodec = "eden(bits=1,keep=0.5)"\n'
            "[buffer]\nmin_updates = 5\n",
            "nearest is codec = 'eden(bits=1)'",
        ),
        ('[aggregator]\nkind = "median"\n[buffer]\nsize = 2\n', "size = 3"),
        ('[aggregator]\nkind = "trimmed_mean"\n[buffer]\nsize = 4\n', "nearest is trim = 0.25 or size = 5"),
        ('[aggregator]\nkind = "trimmed_mean"\ntrim = 0.5\n', "below 0.5"),
        (
            '[aggregator]\nkind = "krum"\nattackers = 3\n[buffer]\nsize = 7\n',
            "nearest is size = 9 or attackers = 2",
        ),
        ('[aggregator]\nkind = "krum"\n', "nearest is [buffer] min_updates = 5"),
        ('[aggregator]\nkind = "median"\n', "nearest is [buffer] min_updates = 3"),
        ('[aggregator]\nkind = "trimmed_mean"\n', "nearest is [buffer] min_updates = 5"),
        (
            '[aggregator]\nkind = "trimmed_mean"\ntrim = 0.4\n[buffer]\nmin_updates = 2\n',
            "nearest is [buffer] min_updates = 3",
        ),
        (
            '[aggregator]\nkind = "krum"\nchosen = 10\n[buffer]\nmin_updates = 5\n',
            "nearest is chosen = 9",
        ),
        ('[aggregator]\nkind = "ca2fl"\n', "nearest is kind = 'random'"),
        ('[aggregator]\nkind = "ca2fl"\n[selection]\nkind = "open"\n', "nearest is kind = 'random'"),
        ('[aggregator]\nkind = "mode"\n', "mean, trimmed_mean, median, krum, ca2fl or module:Class"),
        ('[aggregator]\nkind = ":Rule"\n', "or module:Class"),
        ('[aggregator]\nkind = "median"\ntrim = 0.1\n', "only to trimmed_mean"),
        ('[server]\noptimizer = "lion"\n', "sgd, momentum, adagrad, adam, yogi"),
        ("[server]\nbeta1 = 0.9\n", "only to momentum and adagrad and adam and yogi"),
        ('[server]\noptimizer = "adam"\nbeta2 = 1.0\n', "below 1"),
        ('[update]\ncodec = "eden(bits=9)"\n', "nearest is eden(bits="),
        ('[update]\ncodec = "eden(bits=9,keep=0.25)"\n', "keep=0.25"),
        ('[update]\ncodec = "sparse(bits=9)"\n', "write sparse(bits=8)"),
        *(
            (
                f'[aggregator]\nkind = "{kind}"\n[update]\ncodec = "sparse(keep=0.2)"\n'
                "[buffer]\nmin_updates = 5\n",
                "nearest is codec = 'eden(bits=1)'",
            )
            for kind in ("median", "trimmed_mean", "krum")
        ),
    ],
)
def test_it_is_refused_with_what_would_do(read, tables, nearest):
    """One sentence, with the place."""
    with pytest.raises(ConfigError) as caught:
        read(tables)
    assert nearest in str(caught.value)


@pytest.mark.parametrize(
    "tables",
    [
        '[aggregator]\nkind = "median"\n[buffer]\nmin_updates = 3\n',
        '[aggregator]\nkind = "median"\n[buffer]\nflush_after_s = 0\n',
        '[aggregator]\nkind = "trimmed_mean"\ntrim = 0.25\n[buffer]\nsize = 4\nmin_updates = 4\n',
        '[aggregator]\nkind = "trimmed_mean"\n[buffer]\nmin_updates = 5\n',
        '[aggregator]\nkind = "trimmed_mean"\ntrim = 0\n',
        '[aggregator]\nkind = "krum"\nattackers = 2\nchosen = 3\n[buffer]\nmin_updates = 7\n',
        '[aggregator]\nkind = "krum"\nattackers = 2\n[buffer]\nflush_after_s = 0\n',
        '[aggregator]\nkind = "ca2fl"\nage = 5\n[selection]\nkind = "fair"\n',
        '[aggregator]\nkind = "my_rules:LossWeightedMean"\n[update]\ncodec = "eden(bits=1,keep=0.25)"\n',
    ],
)
def test_what_goes_together_is_taken(read, tables):
    """The nearest values of the faults above among them; ours are made with their options."""
    table = read(tables).aggregator
    if table.kind in AGGREGATOR_OPTIONS:
        assert aggregator_for(table.kind, table.options)


def test_optimizers_have_usual_values(read):
    """What is left out depends on the optimizer; what is said stands."""
    assert (read("").server.learning_rate, read("").server.options) == (1.0, {})
    adam = read('[server]\noptimizer = "adam"\nbeta1 = 0.5\n').server
    assert (adam.learning_rate, adam.options) == (0.02, {"beta1": 0.5, "beta2": 0.99, "tau": 1e-3})


def test_tables_of_names_agree():
    """The configuration's aggregators are those that exist, and its usual values theirs."""
    assert AGGREGATOR_OPTIONS.keys() == AGGREGATORS.keys()
    for name, options in AGGREGATOR_OPTIONS.items():
        made, usual = aggregator_for(name, options), AGGREGATORS[name]()
        assert all(getattr(made, option) == getattr(usual, option) for option in options)
    with pytest.raises(ConfigError, match="tau"):
        aggregator_for("krum", {"tau": 1})


@pytest.mark.parametrize(
    ("kind", "age", "versions", "warned"),
    [("ca2fl", 50, 50, True), ("ca2fl", 49, 50, False), ("mean", 50, 1, False)],
)
def test_an_age_that_keeps_more_than_retention_asks_for_is_told(kind, age, versions, warned):
    """A disk that was measured by ``[retention]`` alone would fill."""
    said = beyond_retention(kind, {"age": age}, versions=versions)
    assert bool(said) == warned
    assert not said or f"age = {age} keeps the payloads of {age + 1} versions" in said
