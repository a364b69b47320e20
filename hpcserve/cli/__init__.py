"""One verb per file: parsing and printing, nothing else."""
