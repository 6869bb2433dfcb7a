"""Inference and evaluation of rationales: intent, confidence and rationale of a clip or a split.

In: a checkpoint, clips. Out: answers (answers.py: rows of JSONL), their scores (scoring.py), and how they change when the clip
changes (faithfulness.py). loading.py and explainer.py: the model; captions.py: descriptions of clips by any stage of training;
coloured_claims.py: claims with the judge's verdicts.
"""
