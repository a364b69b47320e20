"""From bytes on disk to parameters."""
