"""The toy model and a pair of nodes for the tests that need no nodes of their own."""

from tests.support.fixtures import pair, settings, toy

__all__ = ["pair", "settings", "toy"]
