"""One page on which results can be explored: a file that opens without a server or a network.

`results` reads the tables, as figures do; `page` writes them into the page with the drawing code of
`web/`. What is shown is computed in the page from the tables' own numbers.
"""
