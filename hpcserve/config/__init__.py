"""Frozen dataclasses, composed: the only place a default is written."""
