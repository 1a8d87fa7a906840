"""Other processors, by QEMU's user-mode emulation: ``python -m hil.emulation``, ``make test-aarch64``."""
