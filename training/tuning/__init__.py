"""Searches for settings: trains with several, drops what falls behind, and keeps the best run.

space       which settings are searched, and between which values
study       the record of all trials, shared by every process that works on it
trial       one training run of the search
search      the loop: claim a trial, run it, record it, until the time is over
report      the table, trials.csv and the command of the best trial
figure      tuning.png
"""
