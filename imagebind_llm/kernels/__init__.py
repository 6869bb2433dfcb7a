"""Fast inner loops of the models, each of which plain PyTorch could replace.

In: tensors and frozen weights. Out: the same numbers as the plain form, with less time or memory; tests hold the two together.
attention.py attention over a cache; fused.py norms and activations; linear.py products with frozen weights on the CPU;
logp.py log-probabilities of tokens without a tensor of all logits.
"""
