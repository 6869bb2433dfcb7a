"""What the page in the browser shows, without the browser; web_demo.py puts it on a gradio page.

In: a clip. Out: HTML. analysis.py: the answers about one clip; view.py: what a person sees of them.
"""
