"""The checksum backend: a toy model for whole-product tests whose every token depends on all tokens before it."""
