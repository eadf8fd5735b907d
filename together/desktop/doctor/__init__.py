"""`doctor`: facts about this machine and its cluster, checks over them, and their display."""
