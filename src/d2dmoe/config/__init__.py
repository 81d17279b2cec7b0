"""Typed configuration: strict models of every key, one file per subject."""
