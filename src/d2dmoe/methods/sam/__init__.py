"""SAM: a token's experts all lie in one group, as on one device (arXiv 2110.07431)."""
