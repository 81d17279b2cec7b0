"""FactorLLM: few experts of neighbouring neurons, routed by distillation (arXiv 2408.11855)."""
