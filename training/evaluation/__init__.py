"""How good a trained model is, and at what: likelihood, latent space, samples, features.

loaded_run          which weights, which rows, and what their likelihood means
likelihood          -ELBO and the importance-weighted NLL
active_units        KL and activity of each latent dimension; collapse named
aggregate_posterior is the aggregate posterior N(0, I)?
linear_probe        what a linear classifier reads off the means
classifier          the frozen features the Frechet distance is measured in
frechet             between two sets of features
report              all of it; `text_table` and `figures` show it
"""
