"""SEER-MoE: fewer experts in memory and fewer that run (arXiv 2404.05089)."""
