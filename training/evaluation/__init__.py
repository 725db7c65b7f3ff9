"""The evaluation of a trained model: likelihood, latent space, samples and features.

Here latents are vectors, also those of models with spatial latents: (rows, latents of a row).

loaded_run          the weights, the rows, and the meaning of their likelihood
likelihood          -ELBO and the importance-weighted NLL
samples             rows decoded from draws of the prior
texts, columns      what is measured of texts, and of rows with columns, only
active_units        KL and activity of each latent dimension; detects collapse
aggregate_posterior whether the aggregate posterior is N(0, I)
linear_probe        the accuracy of a linear classifier on the means
classifier          the frozen features for the Frechet distance
frechet             the Frechet distance between two sets of features
report              all results; `text_table` and `figures` show them, `results_file` keeps them
"""
