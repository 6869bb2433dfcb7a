"""A frozen encoder (ImageBind): text, sound and pictures to vectors in one space, each clip once.

In: clips and texts. Out: a vector for each modality (ImageBind: 1024 numbers), in a store that training and evaluation read.
interface.py what an encoder is; registry.py the encoders by name; towers.py ImageBind's transformers; bpe.py its tokenizer;
weights.py its checkpoint; extraction.py clips -> store; store.py the file format; clip_encoder.py a single clip, encoded as
those of a store were.
"""
