"""Models in PyTorch: made, loaded, exported. Only the routes of PyTorch import this package."""
