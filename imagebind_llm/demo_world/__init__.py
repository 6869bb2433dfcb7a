"""The demo world: clips with sound in MIntRec's layout, made from a seed, about which everything is known.

In: a seed. Out: a data set. A drawn speaker and a synthetic voice show cues (cues.py has the published table), the words leave
the intent open (texts.py), a reference rationale names the cues that decide (phrases.py). Therefore the best reachable accuracy
of every subset of modalities is known exactly, and every claim of a rationale can be checked.

    python -m imagebind_llm.demo_world --output_dir data/demo/clips --seed 0
"""
