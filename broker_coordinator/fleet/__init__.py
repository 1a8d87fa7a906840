"""The files of a fleet: its authority, the certificates of its devices, their rights on the broker."""
