"""From data sets to batches: which rows train, as which token ids, in which order.

In: data sets, captions, instruction files. Out: batches of one step. sequences.py rows -> token ids; batches.py who computes
which rows; packing.py several answers to one prompt in one row; seen.py what a model was trained on, and what that refuses.
"""
