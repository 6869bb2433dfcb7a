"""A frozen encoder (ImageBind) maps text, sound and pictures to vectors in one space.

In: clips and texts. Out: a vector for each modality (ImageBind: 1024 numbers), in a store that training and evaluation read.
interface.py: the interface of encoders; registry.py: the encoders by name; towers.py: ImageBind's transformers; bpe.py: its
tokenizer; weights.py: its checkpoint; extraction.py: clips to store; store.py: the file format; clip_encoder.py: embeddings of
a single clip.
"""
