"""The lecture, measured: a VAE beside the plain autoencoder on the same net, data and budget.

plan          which runs: model, training rows, seed
stage         the runs trained, the rows, the classifier that judges pictures
claim         what is claimed, what we expect, how it is measured, whether it holds
distribution  overfitting  latent  sampling  interpolation  collapse  density  features
              one claim each
report        COMPARISON.md and comparison.json
figures       its pictures
"""
