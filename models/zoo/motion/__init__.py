"""Seven exercises of the shoulder, felt by a watch on the wrist of ten people: fetched, see docs/data.md."""

from models.zoo.motion.recordings import CLASSES, DATASET, PEOPLE, RATE_HZ, Motion, load, split, split_in_time

__all__ = ["CLASSES", "DATASET", "PEOPLE", "RATE_HZ", "Motion", "load", "split", "split_in_time"]
