"""Tools that a model calls: servers of them by MCP, who may use which, and plain functions."""
