"""`latentd client ...`: call a server from the shell."""
