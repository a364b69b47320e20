"""Cases of silu_and_mul: (rows, size of the result)."""

SMALL = [(1, 32), (3, 100), (2, 1100)]
FULL = [(rows, 14336) for rows in (1, 16, 64, 256, 4096)]
