"""ITSL: explainable multimodal intent recognition by Instruction Tuning with Self-critical Learning.

Given what a person says, how it looks and how it sounds, name the intent and say why. A frozen ImageBind encodes
text, audio and video (encoder); a bridge carries the embeddings into the space of a frozen LLaMA (bridge, llama);
learnable prompt vectors with zero-init gates steer it; the intent class and a free-text rationale come out together.
The frozen encoder runs once per clip: its embeddings live in a store that training and evaluation read.

Shapes, in every docstring:
    B batch   M modalities, always in the order (text, audio, vision)   E width of the encoder's vectors
    N windows of a clip   T tokens  D LLaMA width   H heads   K head width   V vocabulary   L layers   A top layers with prompts
    P prompts per layer   C intents   S sampled answers   G generated tokens
"""

__version__ = "0.1.0"
