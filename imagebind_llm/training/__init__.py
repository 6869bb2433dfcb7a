"""Training runs: a folder that can be stopped at any moment and goes on where it was.

In: settings, a corpus, a model. Out: checkpoints, a log, curves, results.json. step.py: the training step; epoch.py: the epoch
and the evaluation; run.py: the run on disk, made of progress.py (where it is), resume.py (what is read back) and log.py (what
it says); results.py: its end; choice.py: which epoch is kept; continuation.py: what may change between stops;
frozen_states.py: states computed once; rehearsal.py: the longest step first.
"""
