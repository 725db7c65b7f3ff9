"""Textbook claims about VAEs, measured against a plain autoencoder: same net, data and budget.

plan          which runs: model, training rows, seed
trained_runs  the runs, trained; their rows; the classifier
hypothesis    a claim, what we expect, how it is measured, whether it holds
distribution  overfitting  latent  sampling  interpolation  collapse  density  features
              one claim each
report        COMPARISON.md and comparison.json
figures       its pictures
"""
