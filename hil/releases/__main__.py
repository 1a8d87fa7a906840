"""``python -m hil.releases RELEASE``: this release and another, in one fleet and on the same stores.

Exit codes: 0 all went well, 1 it did not, 2 wrong usage.
"""

import argparse
import json
import shutil
import sys
import tempfile
from pathlib import Path

from fl_protocol.errors import LichenError
from hil.releases.courses import COURSES, Outcome, run_course
from hil.releases.installation import ROOT, release_of

__all__ = ["main"]

CACHE = ROOT / ".releases"


def main(words: list[str] | None = None) -> int:
    """Run the courses: 0 if all went well."""
    parser = argparse.ArgumentParser(prog="python -m hil.releases", description=__doc__)
    parser.add_argument("release", help="a venv with the other release, or a commit of this repository")
    parser.add_argument("--only", action="append", choices=sorted(COURSES), help="repeatable")
    parser.add_argument("--uploads", choices=["small", "large"], help="both, if not given")
    parser.add_argument("--json", action="store_true", help="print the outcomes as JSON")
    given = parser.parse_args(words)
    out = Path(tempfile.mkdtemp(prefix="lichen-releases-"))
    outcomes: list[Outcome] = []
    try:
        release = release_of(given.release, CACHE)
        for course in given.only or COURSES:
            for uploads in [given.uploads] if given.uploads else ["small", "large"]:
                folder = out / f"{course}-{uploads}"
                outcome = run_course(course, release, folder, large=uploads == "large")
                outcomes.append(outcome)
                if not given.json:
                    _print(outcome, uploads)
    except LichenError as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    if given.json:
        rows = [
            {
                "course": outcome.course,
                "faults": list(outcome.faults),
                "books": outcome.books.to_json() if outcome.books else None,
            }
            for outcome in outcomes
        ]
        sys.stdout.write(json.dumps(rows, indent=2) + "\n")
    if all(outcome.well for outcome in outcomes):
        shutil.rmtree(out)
        return 0
    sys.stderr.write(f"{out} is kept\n")
    return 1


def _print(outcome: Outcome, uploads: str) -> None:
    books = outcome.books
    counts = ""
    if books is not None:
        counts = (
            f"created {books.created}, accepted {books.accepted}, lost {books.lost}, counted twice "
            f"{books.duplicated}, versions replayed {books.versions_ok} of {books.versions_checked}"
        )
    sys.stdout.write(f"{outcome.course:14} {uploads:6} {'well' if outcome.well else 'NOT WELL':9} {counts}\n")
    sys.stdout.writelines(f"  {fault}\n" for fault in outcome.faults)
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
