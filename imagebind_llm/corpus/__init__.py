"""From data sets to batches: which rows train, as which token ids, in which order.

In: data sets, captions, instruction files. Out: the batches of each step. sequences.py: rows to token ids; batches.py: the rows
of each step, rank and pass; packing.py: several answers to one prompt in one row; seen.py: which rows a model has seen, so that
a report on them is refused.
"""
