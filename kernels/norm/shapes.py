"""Cases of the norms: (rows, hidden size). SMALL runs in the interpreter, FULL on a GPU."""

SMALL = [(1, 64), (3, 96), (5, 128), (2, 257)]
FULL = [(rows, hidden) for hidden in (4096, 8192) for rows in (1, 16, 64, 256, 4096)]
