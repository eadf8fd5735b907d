"""A home of its own for every test, a hub on loopback, and a toy model with two nodes."""

from tests.support.fixtures import home, hub, pair, settings, store, toy

__all__ = ["home", "hub", "pair", "settings", "store", "toy"]
