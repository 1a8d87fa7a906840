"""The order in which a device takes its samples is NumPy's own for a seed and an epoch."""

import numpy as np
import pytest

from edge_agent.trainer import shuffled_batches


@pytest.mark.parametrize("seed", [0, 7, 2**32 - 1, 2**40 + 3])
def test_each_epoch_is_the_permutation_of_its_seed(seed):
    """What is drawn faster is what ``default_rng`` draws, or a device would not train as it did."""
    drawn = np.concatenate(list(shuffled_batches(41, 16, epochs=2, seed=seed)))
    wanted = [np.random.default_rng([seed, epoch]).permutation(41) for epoch in range(2)]
    assert np.array_equal(drawn, np.concatenate(wanted))
