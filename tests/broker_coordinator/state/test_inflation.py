"""Norms are compared between devices only after the codec's own noise is taken out of them."""

import numpy as np
import pytest

from broker_coordinator.aggregation.appraisal import Appraisal, appraise
from broker_coordinator.aggregation.scalars import from_raw
from fl_protocol.codec import codec_for
from fl_protocol.errors import CodecError

CODECS = [
    "float32",
    "float16",
    "int8",
    "eden(bits=1)",
    "eden(bits=2)",
    "eden(bits=4)",
    "eden(bits=1,keep=0.25)",
    "eden(bits=2,keep=0.1)",
]


def there(spec):
    """Whether this release has the codec."""
    try:
        codec_for(spec)
    except CodecError:
        return False
    return True


@pytest.mark.parametrize("codec", [spec for spec in CODECS if there(spec)])
def test_a_norm_is_the_delta_s_whatever_the_codec(history, codec):
    """Within a tenth, on average of twenty updates: then the bound of the defence is the same for each."""
    ratios = []
    for number in range(20):
        rng = np.random.default_rng(number)
        delta = rng.standard_normal(history.rules.layout.size).astype(np.float32)
        update = history.next(delta=delta, codec=codec)
        verdict = appraise(
            update.update_id,
            update.header,
            update.payload,
            device="d",
            state=history.open.state,
            rules=history.rules,
        )
        assert isinstance(verdict, Appraisal)
        ratios.append(float(from_raw(verdict.norm)) / float(np.linalg.norm(delta)))
    assert np.mean(ratios) == pytest.approx(1, rel=0.1)
