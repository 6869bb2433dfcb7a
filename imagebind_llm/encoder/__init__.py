"""ImageBind, frozen: text, sound and pictures to vectors in one space, each clip once.

In: token ids, spectrograms, crops. Out: vectors of 1024 numbers a modality, in a store that training and evaluation read.
towers.py the transformer of each modality; bpe.py the tokenizer; weights.py its checkpoint; extraction.py clips -> store;
store.py the file format; clip_encoder.py a single clip, encoded as those of a store were.
"""
