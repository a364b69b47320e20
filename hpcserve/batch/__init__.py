"""Streams rows of files through the engine."""
