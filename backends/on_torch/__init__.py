"""The torch backend: CPUs, NVIDIA and Apple GPUs. `backend` is its entry; torch is imported in this package only."""
