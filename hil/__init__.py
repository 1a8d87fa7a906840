"""Devices that are not, or not only, real: fleets of processes on one machine, and what they measure."""
