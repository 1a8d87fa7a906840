"""``python -m lichen``."""

from lichen.command import main

main()
