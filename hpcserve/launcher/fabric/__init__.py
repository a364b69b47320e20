"""The network between nodes, one kind per file: which variables it forces, and why."""
