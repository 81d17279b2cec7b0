"""Converted models of transformers: saved and loaded by its own `save_pretrained` and
`from_pretrained`, the operating point included."""

from d2dmoe.registration import attach as attach
