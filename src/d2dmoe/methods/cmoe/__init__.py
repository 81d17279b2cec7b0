"""CMoE: shared and routed experts with a router that needs no training (arXiv 2502.04416)."""
