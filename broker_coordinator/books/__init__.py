"""What an operator reads and keeps of the past: audit, replay, backup, export, recovery."""
