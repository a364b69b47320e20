"""Cases of page_index: (lengths of the rows, page_size, max_pages); a length of 0 is padding."""

SMALL = [
    ([1], 16, 4),
    ([5, 0, 33, 16], 16, 4),
    ([3, 1, 0, 0, 7], 1, 8),
    ([64, 65], 64, 3),
]
FULL = [([1000 + 7 * row for row in range(rows)], 16, 8192) for rows in (1, 64, 256)]
