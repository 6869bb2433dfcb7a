"""Trained models explain: a clip, a key or a split to intent, confidence and rationale.

In: a checkpoint, clips. Out: answers (answers.py: rows of JSONL), their scores (scoring.py) and how far they follow the clip
(faithfulness.py). loading.py and explainer.py answer; captions.py what any stage sees and hears;
coloured_claims.py shows verdicts.
"""
