"""The HTTP side of a head: OpenAI-compatible routes, status, control."""
