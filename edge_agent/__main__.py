"""``python -m edge_agent`` is ``lichen-agent``."""

import sys

from edge_agent.command import main

if __name__ == "__main__":
    sys.exit(main())
