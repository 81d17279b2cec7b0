"""ZTW (arXiv 2106.05409): early exits on a frozen model."""
