"""Four questions to begin with, for the page and for `together chat --examples`. Knows no model."""

PRESETS = (
    "What is the capital of France?",
    "What is 7 plus 5?",
    "How many meters are in 3 kilometers?",
    "What is a node?",
)
