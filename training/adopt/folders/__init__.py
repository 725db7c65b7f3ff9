"""Folders that other tools wrote: their files, and what their config.json says."""
