"""Container runtimes, one per file: how each starts a command in an image."""
