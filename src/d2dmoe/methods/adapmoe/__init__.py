"""AdapMoE: experts are dropped where the loss is not sensitive to it (arXiv 2408.10284)."""
