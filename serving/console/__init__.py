"""`latentd client ...`: a server called by people, from the shell."""
