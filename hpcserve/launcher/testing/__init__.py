"""Stand-ins for what a test machine lacks: a cluster, its commands, an engine that answers."""
