"""Cases of write_kv: (tokens, kv heads, head_dim, page_size, pages)."""

SMALL = [(1, 1, 16, 1, 9), (5, 2, 32, 16, 3), (4, 9, 24, 4, 4)]
FULL = [(tokens, 8, 128, 16, 2048) for tokens in (1, 64, 256, 8192)]
