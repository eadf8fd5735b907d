"""Conversations that the head keeps: a tree of turns each, by owner, in one database file."""
