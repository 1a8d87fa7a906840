"""Virtual fleets: thousands of deployed agents and their coordinator in one process, on a virtual clock."""
