"""Converted models of transformers: saved and loaded by its own `save_pretrained` and
`from_pretrained`, the operating point included. Needs transformers."""

from d2dmoe.huggingface.quantizer import attach as attach
