"""The machine as both sides use it: disk, clock and the broker connection. Everything else is pure."""
