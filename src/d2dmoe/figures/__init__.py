"""The paper's figures, each a function from tables to a matplotlib Figure.

One module per subject, so that an edit redraws only its own figures.
"""
