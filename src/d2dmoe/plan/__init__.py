"""The plan: what exists, where it lies, what reads it, and which edit repeats it.

It is made of a configuration and the tables of records alone: no file of a result is opened, and
nothing here knows Snakemake. The rules ask it.
"""
