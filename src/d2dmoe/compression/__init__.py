"""Compressed models that D2DMoE is combined with (claim C10): pruned, distilled, quantised."""
