"""A-ViT (arXiv 2112.07658): tokens that halt."""
