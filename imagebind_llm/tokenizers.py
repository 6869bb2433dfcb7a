"""Text to token ids: CLIP's byte-pair encoding for ImageBind, SentencePiece and Hugging Face tokenizers for LLaMA."""
