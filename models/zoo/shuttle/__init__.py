"""Nine sensors of the space shuttle, normal rows and anomalies: fetched, see docs/data.md."""

from models.zoo.shuttle.readings import CENTRE, DATASET, SPREAD, Shuttle, auc, load, split

__all__ = ["CENTRE", "DATASET", "SPREAD", "Shuttle", "auc", "load", "split"]
