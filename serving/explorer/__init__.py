"""The explorer: a page that shows a model's latent space, and the calls that it makes."""
