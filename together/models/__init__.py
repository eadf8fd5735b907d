"""Model folders: what a checkpoint says of itself, which of its bytes a layer range needs. Knows no framework."""
