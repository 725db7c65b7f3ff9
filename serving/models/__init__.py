"""Models: found on disk, verified, tried, loaded, served through batchers, unloaded."""
