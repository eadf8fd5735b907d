"""How long tests wait before they say that something hangs. Knows no test.

No machine is so slow that it needs this long for what is waited for: it tells "never" from "later", and nothing else.
What takes long is found by `bench`, and work is counted (`tests/support/work.py`). tests/test_times.py sees to it.
"""

from __future__ import annotations

PATIENCE = 90.0  # seconds; below pytest's own timeout, so that a test says what it waited for
PATIENCE_MS = 1000 * PATIENCE
