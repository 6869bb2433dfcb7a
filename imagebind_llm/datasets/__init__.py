"""Data sets on disk: MIntRec, MIntRec2.0, and a table of clips.

In: a folder or a table. Out: examples with keys, texts, clips, splits and labels. layouts.py: the columns and paths of each
data set; readers.py: reading; imagebind_llm.check reports all faults of a data set.
"""
