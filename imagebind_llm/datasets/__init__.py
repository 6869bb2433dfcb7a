"""Data sets on disk: MIntRec, MIntRec2.0, and a table of one's own with the clips beside it.

In: a folder or a table. Out: examples, with keys, texts, clips, splits and labels. readers.py reads; imagebind_llm.check says
what a folder is and what is wrong with it.
"""
