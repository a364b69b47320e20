"""Cases of experts: (tokens, hidden size, size of an expert, experts, experts a token)."""

SMALL = [(1, 64, 32, 4, 2), (5, 64, 48, 8, 2), (40, 80, 32, 4, 3), (3, 64, 32, 16, 8)]
#: Qwen3-30B-A3B and Mixtral-8x7B.
FULL = [
    (tokens, hidden, size, experts, k)
    for hidden, size, experts, k in ((2048, 768, 128, 8), (4096, 14336, 8, 2))
    for tokens in (1, 16, 64, 256, 4096)
]
