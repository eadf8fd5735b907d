"""Tests of together/trust/."""
