"""One output format per module, named as the ending of its files."""
