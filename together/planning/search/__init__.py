"""The exact searches for the best split, and the one for more nodes than subsets can be counted."""
