"""together: several ordinary machines run one language model. This package imports nothing by itself."""

__version__ = "0.1.0"
