"""A home of its own for every test, and a hub on loopback."""

from tests.support.fixtures import home, hub, store

__all__ = ["home", "hub", "store"]
