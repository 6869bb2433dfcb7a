"""Self-criticism: sampled answers, what they are worth, and the loss that pays for it.

In: a batch, the model, references, a judge. Out: a loss and what is logged of it (self_critical.py, of sampled_answers.py).
claims.py: the clauses of an answer; judge.py, judge_fit.py: whether a clause holds of a clip; verifier.py: which intent a text
argues for; rewards.py, credit.py: the worth of an answer and of each claim; alternatives.py: what a claim could be instead;
best_of.py and checked_claims.py use the judge without training; trust.py uses it on references.
"""
