"""The MLX backend: Apple GPUs, and CPUs elsewhere. `backend` is its entry; only `config` imports without mlx."""
