"""Models of text: the sheets of a run, and the graphs of a bundle and their parity.

`networks.gru` is the net. `text_file` reads rows. `latentd.texts` says how a text becomes a row.
"""
