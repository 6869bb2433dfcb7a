"""Intent classification on the vectors of a store: probes, zero-shot and trained models under one protocol.

In: a data set, a store, a method. Out: scores with intervals by modality and slice, a page. protocol.py: which rows train,
choose and are reported; probe.py, zeroshot.py, methods.py: the methods; evaluation.py: their scores; report.py: the page.
"""
