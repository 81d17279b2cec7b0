"""D2DMoE: dense Transformers converted to dynamic-k mixtures of experts (arXiv 2310.04361)."""

from d2dmoe.registration import register

__version__ = "0.1.0"

register()
