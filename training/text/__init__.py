"""Models of text as a bundle: its graphs, their parity, and its golden vectors.

`networks.gru` is the net. `readers.text` reads rows. `latentd.texts` says how a text becomes a row.
"""
