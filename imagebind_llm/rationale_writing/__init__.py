"""Rationales by a large model behind an OpenAI-compatible chat API, from which the method learns to explain.

In: a data set. Out: rationales.jsonl. prompt.py: what is asked; acceptance.py: what is taken; client.py: the network;
journal.py: the files, so that nothing paid for is lost; writing.py: the run; review.py: a page to look at all of it.
"""
