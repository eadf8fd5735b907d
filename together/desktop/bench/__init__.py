"""The `bench` commands: one module per measurement, `cli` for their options."""
