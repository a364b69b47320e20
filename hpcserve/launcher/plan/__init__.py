"""What fits on which GPUs and how fast it can be, from a model's config.json alone."""
