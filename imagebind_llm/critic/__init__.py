"""Self-criticism: sampled answers, their rewards, and the self-critical loss.

In: a batch, the model, references, a judge. Out: a loss and sums for the log (self_critical.py, sampled_answers.py).
claims.py: the clauses of an answer; judge.py, judge_fit.py: whether a clause is true of a clip; verifier.py: which intent a
text argues for; rewards.py, credit.py: rewards and advantages of answers and of their claims; alternatives.py: other claims in
place of one; best_of.py and checked_claims.py use the judge without training; trust.py uses it to weight references.
"""
