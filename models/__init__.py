"""Training artifacts: ``runtime`` opens and runs them, ``build`` makes them, ``zoo`` has ready ones."""
