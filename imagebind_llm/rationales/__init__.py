"""Rationales by a large model behind an OpenAI-compatible chat API: asked by one prompt, accepted by rules, kept line by line.

prompt.py what is asked; acceptance.py what is taken; client.py the network; journal.py the files, so that nothing paid for is
lost; writing.py the run; review.py the page on which a person looks at all of it. The method learns to explain from them.
"""
