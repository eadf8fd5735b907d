"""The head: opens a model, plans it over the nodes, serves it, and mends its ring. Imports no torch and no mlx."""
