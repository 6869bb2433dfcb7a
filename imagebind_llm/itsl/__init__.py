"""The method: ImageBind vectors steer a frozen LLaMA that names an intent and explains it.

In: vectors of a clip, a question. Out: an intent and a rationale. bridge.py -> model.py -> losses.py, generate.py;
instructions.py prompts and answers as token ids; assembly.py puts a model together; checkpoint.py keeps what was trained;
adapter.py reads released adapters.
"""
