"""Writes models as folders in MLX's format, which mlx-lm opens."""
