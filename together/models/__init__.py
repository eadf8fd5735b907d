"""Model folders: what a checkpoint says of itself, which of its bytes a layer range needs."""

import os

os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")  # read when the hub's library is imported: it would report on us
