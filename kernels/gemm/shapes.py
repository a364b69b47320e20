"""Cases of the small-M linear: (rows, N, K), and for the interpreter a configuration."""

SMALL = [
    (1, 64, 64, (16, 32, 1, 4, 2)),
    (5, 64, 96, (32, 32, 3, 4, 2)),
    (16, 32, 64, (32, 16, 4, 4, 2)),
]
#: Weights of Llama-3.1-8B (qkv, o, gate-up, down, lm_head), of Qwen3-0.6B, of 70B at TP 8.
WEIGHTS = [
    (6144, 4096),
    (4096, 4096),
    (28672, 4096),
    (4096, 14336),
    (128256, 4096),
    (4096, 1024),
    (1024, 2048),
    (6144, 1024),
    (1024, 3072),
    (151936, 1024),
    (1280, 8192),
    (8192, 1024),
    (7168, 8192),
    (8192, 3584),
]
FULL = [(rows, n, k) for n, k in WEIGHTS for rows in (1, 2, 4, 8, 16)]
