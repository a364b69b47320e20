"""Cases of rope_kv_write: (tokens, q heads, kv heads, head_dim, page_size, q/k-norm)."""

SMALL = [
    (1, 4, 2, 32, 1, False),
    (3, 9, 3, 64, 16, True),
    (2, 2, 2, 48, 4, True),
    (4, 8, 1, 16, 16, False),
]
FULL = [(tokens, 32, 8, 128, 16, norm) for norm in (False, True) for tokens in (1, 64, 256, 8192)]
