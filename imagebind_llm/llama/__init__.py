"""The LLaMA decoder with gated prompts, and readers of LLaMA checkpoints.

In: token ids, prompt vectors. Out: hidden states. decoder.py: the model, with rotary.py and cache.py; tokenizers.py: texts and
token ids; load.py: parameters from files (meta.py, huggingface.py, gguf.py: one reader per format, with the interface in
checkpoint_files.py).
"""
