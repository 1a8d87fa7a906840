"""``lichen demo``: a fleet on this machine that trains on real handwritten digits."""
