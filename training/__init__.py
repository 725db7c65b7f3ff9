"""Train a variational autoencoder, measure it, export it as a bundle."""
