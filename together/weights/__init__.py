"""How a model's bytes get to this machine and from it to others: cache, hub, transfers between machines."""
