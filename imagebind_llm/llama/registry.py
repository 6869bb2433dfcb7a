"""The decoders of LLaMA's family by name, as config.json's model_type has them.

Another one: a file in this folder with a subclass of Llama, and its line here. Its Hugging Face folders can then be read;
Meta's files and GGUF are LLaMA's alone.
"""

from imagebind_llm.llama.decoder import Llama

DECODERS: dict[str, type[Llama]] = {"llama": Llama}
