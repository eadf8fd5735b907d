"""Backends: what runs a layer range. The contract is in base.py; only the backends know a framework."""
