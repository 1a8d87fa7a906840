"""Epoch generators that were seeded together are those that each device would seed alone."""

import numpy as np
import pytest

from edge_agent.trainer import epoch_generator
from hil.simulate.epoch_generators import EpochGenerators


@pytest.mark.parametrize("epoch", [0, 1, 70_000])
def test_each_is_numpys_own(epoch):
    """Or a virtual device would train on other batches than the deployed one; a seed may stand twice."""
    seeds = [0, 1, 2**32 - 1, 77, 77, *np.random.default_rng(5).integers(0, 2**32, 40).tolist()]
    together = EpochGenerators(seeds)
    for seed in seeds:
        drawn = together(seed, epoch)
        assert drawn.bit_generator.state == epoch_generator(seed, epoch).bit_generator.state


def test_a_seed_that_was_not_named_is_seeded_alone():
    """A trainer may ask for an order with a seed of its own."""
    assert EpochGenerators([1])(2**40, 3).bit_generator.state == epoch_generator(2**40, 3).bit_generator.state
