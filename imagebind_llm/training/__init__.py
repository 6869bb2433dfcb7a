"""Training runs: a run can be stopped at any moment and resumes from its folder.

In: settings, a corpus, a model. Out: checkpoints, a log, curves, results.json. step.py: the training step; epoch.py: the epoch
and the evaluation; run.py: the run on disk, with progress.py (position and scores), resume.py (reading it back) and log.py;
results.py: calibration and the report on test; choice.py: the best epoch; continuation.py: which settings may change between
stops; frozen_states.py: cached hidden states; rehearsal.py: a test of memory before the first step.
"""
