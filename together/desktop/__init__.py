"""What a person starts: the command line, the menu, the app around a head. Knows no ring and no model format."""
