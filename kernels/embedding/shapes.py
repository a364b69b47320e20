"""Cases of embed: (tokens, vocabulary, hidden size)."""

SMALL = [(1, 10, 32), (7, 50, 100), (3, 20, 1100)]
FULL = [(tokens, 128256, 4096) for tokens in (1, 64, 256, 8192)]
