"""The checks that a model trained elsewhere must pass, one module each: `check` returns what it
found, or raises AdmissionError. `latentd.training.adopt.admission` has their order."""
