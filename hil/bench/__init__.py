"""The figures of docs/benchmarks.md: each section measures one thing, and ``make bench`` repeats them all."""
