"""Who am I, whom do I talk to: ranks, groups, collectives."""
