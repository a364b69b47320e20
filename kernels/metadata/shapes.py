"""Cases of expand: (tokens of each row, page_size); a row of `PADDING` is padding with one token."""

PADDING = -1
SMALL = [
    ([1], 16),
    ([1, 1, PADDING, 7], 4),
    ([3, 300, 1], 16),
    ([PADDING, 5], 1),
]
FULL = [([1] * rows, 16) for rows in (1, 64, 256, 1024)] + [([1] * 192 + [2048, 6000], 16)]
