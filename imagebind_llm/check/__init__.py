"""What a file or folder is, and whether it can be used: data sets (datasets.py) and weights (weights.py).

In: a path. Out: a report in words, and an exit code. Nothing is written. `python -m imagebind_llm.check PATH`.
"""
