"""Cases of sum_add_rms_norm: (ranks, rows, H)."""

SMALL = [(2, 1, 64), (3, 4, 80), (4, 2, 128), (8, 3, 64)]
#: Rows that ranks share out unevenly, and fewer of them than ranks.
PUSHED = [(2, 5, 64), (4, 9, 80), (4, 3, 64)]
#: A 70B model's hidden states.
FULL = [(ranks, rows, 8192) for ranks in (2, 4, 8) for rows in (1, 2, 4, 8, 16, 32, 64)]
