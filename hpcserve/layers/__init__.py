"""Tensor-parallel blocks whose parameters know how to load themselves."""
