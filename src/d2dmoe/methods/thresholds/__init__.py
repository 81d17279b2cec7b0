"""CATS (arXiv 2404.08763), CHESS (2409.01366), TEAL (2408.14690): thresholds, without training."""
