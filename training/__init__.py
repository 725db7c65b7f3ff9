"""Train a variational autoencoder, measure it, export it as a bundle.

settings, contradictions, config   the flags of a run
readers, data                      --data -> arrays -> checked, split rows (`dataset`)
networks, likelihoods, model       q(z|x), p(x|z), and the VAE and the autoencoder made of them
objective, trainer, train          a step, an epoch, a run; `checkpoint` keeps its state
logger, trackers, figures, sheets  what a run tells and draws
evaluation, comparison, runs       what is measured of runs
tuning                             a search for settings
export                             checkpoint -> graphs, checked -> bundle (`text` for texts)
adopt                              a model that was trained elsewhere -> bundle
"""
