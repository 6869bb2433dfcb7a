"""What the page in the browser shows, without the browser: analysis.py the answers about one clip, view.py their HTML.

web_demo.py puts them on a gradio page; nothing here imports gradio.
"""
