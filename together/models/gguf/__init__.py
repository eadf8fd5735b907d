"""GGUF files: what they say of themselves, and the weights in them."""
