"""The command line, the app around a head, and its menu."""
