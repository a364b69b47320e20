"""One batch format per module, named as the ending of its files."""
