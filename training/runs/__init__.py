"""What trained runs wrote, listed and compared. It reads their logs and evaluations, not their
weights, and needs no torch.

recorded_run   the metrics of one run
listing        `latentd runs`: a table of all runs below a folder
difference     `latentd compare-runs`: what differs between runs
curves         their curves in one picture
"""
