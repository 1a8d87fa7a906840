"""The breaker: everything that can go wrong does, on a seeded schedule, and then the books must balance.

``python -m hil.chaos --minutes 5 --devices 12 --seed 7`` runs a fleet of real processes against a real
broker; ``docs/reliability.md`` says what is promised, and how each figure is repeated.
"""

from hil.chaos.books import Books
from hil.chaos.schedule import KINDS, Fault, draw_schedule

__all__ = ["KINDS", "Books", "Fault", "draw_schedule"]
