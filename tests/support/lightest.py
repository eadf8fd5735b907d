"""The backend whose stages start soonest, for tests that need a real model and prove nothing of its backend.

Importing PyTorch takes seconds of a processor for each process. Knows no test.
"""

from __future__ import annotations

from importlib.util import find_spec

LIGHTEST = "mlx" if find_spec("mlx") else "torch"
