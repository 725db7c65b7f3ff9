"""Train a variational autoencoder, look at it, export it as a bundle. See `python -m training`."""
