"""Textbook claims about VAEs, tested against a plain autoencoder with equal net, data and budget.

plan          the runs: model, training rows, seed
trained_runs  the trained runs, their rows and the classifier
hypothesis    a claim, our expectation, its measurement, its verdict
distribution  overfitting  latent  sampling  interpolation  collapse  density  features
              one claim each
report        COMPARISON.md and comparison.json
figures       the report's pictures
"""
