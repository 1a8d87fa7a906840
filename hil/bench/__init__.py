"""The figures of docs/benchmarks.md: each section measures one thing. ``make bench``
repeats them, but for ``boards`` and ``peers``, which say what they take."""
