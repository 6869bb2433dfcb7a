"""A page is one file: text is escaped, figures are inside, the same numbers give the same bytes."""

import base64
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from imagebind_llm.html import Html, bars, figure, heatmap, lines, link, page, paragraph, scatter, table


class Reader(HTMLParser):
    """Tags that were opened and not closed, every attribute, and the text."""

    def __init__(self, source: str):
        super().__init__()
        self.open: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.said = ""
        self.feed(source)

    def handle_starttag(self, tag, attributes):
        self.attributes += attributes
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.said += data


def figures():
    curve = {"train": ([1, 2, 3], [0.1, 0.5, 0.6]), "dev": ([1, 2, 3], [0.1, 0.4, 0.5])}
    yield lines(curve, "epoch", "macro F1", diagonal=True)
    yield bars(["Praise", "Ask for help"], {"ours": [50.0, 70.0], "people": [90.0, 80.0]}, {"ours": [(40, 60), (70, 75)]}, "F1")
    yield heatmap(np.array([[3, 0], [1, 2.5]]), ["a", "b"], ["a", "b"], "predicted", "gold")
    yield scatter(np.array([[0.0, 1.0], [1.0, 0.0]]), ["a", "b"], ["a", "b"])


def test_a_page_stands_alone_and_is_well_formed():
    parts = [figure(drawn, "a caption") for drawn in figures()]
    read = Reader(page("A run", [("Figures", parts), ("Words", ["a & b", table(["x", "n"], [["<b>", 3.14159], [None, 2]])])]))
    assert read.open == []
    sources = [value for name, value in read.attributes if name == "src"]
    assert len(sources) == 4 and all(source.startswith("data:image/svg+xml;base64,") for source in sources)
    assert all(b"<svg" in base64.b64decode(source.split(",")[1]) for source in sources)
    assert "a & b" in read.said and "<b>" in read.said and "3.1" in read.said and "–" in read.said


def test_what_is_not_html_is_escaped_and_what_is_html_is_not():
    assert "&lt;i&gt;" in paragraph("<i>") and "<i>" in paragraph(Html("<i>"))
    assert link('a"b.mp4', "x < y") == '<a href="a&quot;b.mp4">x &lt; y</a>'


def test_figures_say_what_they_were_given():
    drawn = [base64.b64decode(re.search(r"base64,([^\"]+)", figure(one)).group(1)).decode() for one in figures()]
    assert "<!-- Ask for help -->" in drawn[1] and "<!-- macro F1 -->" in drawn[0]
    assert "<!-- 2.5 -->" in drawn[2] and "<!-- 0 -->" not in drawn[2]


def test_the_same_numbers_give_the_same_bytes():
    assert [figure(one) for one in figures()] == [figure(one) for one in figures()]


def test_a_row_of_another_width_is_refused():
    with pytest.raises(ValueError, match=r"expected 2 cells \(x n\), got 1"):
        table(["x", "n"], [["a"]])
