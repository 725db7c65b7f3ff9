"""How good a trained model is, and at what: likelihood, latent space, samples, features.

subject      which weights, which rows, and what their likelihood means
bound        -ELBO and the importance-weighted NLL
units        KL and activity of each latent dimension; collapse named
aggregate    is the aggregate posterior N(0, I)?
probe        what a linear classifier reads off the means
classifier   the frozen features the Frechet distance is measured in
frechet      between two sets of features
report       all of it; `table` and `figures` show it
"""
