"""Two releases in one fleet: the agent of one with the coordinator of the other, and the way from one to the
next on the same state folders.

``python -m hil.releases RELEASE`` runs it for real; RELEASE is an installation, or a commit.
"""

from hil.releases.courses import COURSES, Outcome, run_course
from hil.releases.installation import OURS, Release, release_of

__all__ = ["COURSES", "OURS", "Outcome", "Release", "release_of", "run_course"]
