"""What the coordinator remembers: the store's verbs, and sqlite behind them."""
