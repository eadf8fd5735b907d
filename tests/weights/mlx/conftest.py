"""Models that are loaded, beside what the folder above gives."""

from tests.support.fixtures import short_trials

__all__ = ["short_trials"]
