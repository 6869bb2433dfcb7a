"""The LLaMA decoder with gated prompts, and the files in which the world keeps one.

In: token ids, prompt vectors. Out: hidden states. decoder.py the model, with rotary.py and cache.py; tokenizers.py text <->
ids; load.py any file -> parameters (meta.py, huggingface.py, gguf.py: one reader a format, which agree on
checkpoint_files.py).
"""
