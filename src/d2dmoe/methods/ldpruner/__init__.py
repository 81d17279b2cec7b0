"""LD-Pruner: operators that the final representation does without (arXiv 2404.11936)."""
