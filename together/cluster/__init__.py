"""The cluster: node agents, how they are found, a head's view of them."""
