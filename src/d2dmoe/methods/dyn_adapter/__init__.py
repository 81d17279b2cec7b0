"""Dyn-Adapter (arXiv 2407.14302): adapters and early heads on a frozen model."""
