"""Models in service: found on disk, verified, loaded, composed over their lanes, let go of."""
