"""Text to token ids for ImageBind: CLIP's byte-pair encoding.

It follows Sennrich et al. (arXiv:1508.07909) over bytes: a word starts as its UTF-8 bytes, the last one marked as
the word's end, and the earliest merge of the published list is applied until none fits. The list is CLIP's
`bpe_simple_vocab_16e6.txt.gz` (Radford et al., arXiv:2103.00020), shipped in vocabulary/ with its licence.
"""

import functools
import gzip
import html
import itertools
from pathlib import Path

import torch
from torch import Tensor

CLIP_VOCABULARY = Path(__file__).parent / "vocabulary" / "bpe_simple_vocab_16e6.txt.gz"


class ClipBPE:
    """CLIP's tokenizer as ImageBind uses it: 49408 ids, rows of 77, start 49406, end 49407, padding 0.

    The end token is always there: ImageBind reads the text's embedding at its position, so a text that is too long loses
    its last words, never its end. (The copy inside ImageBind-LLM cut the end off, and every long text became the same.)
    """

    context_length = 77
    start, end = 49406, 49407

    def encode(self, texts: list[str]) -> Tensor:
        """Token ids of the texts: (B, 77) int64, zero-padded. What does not fit is left out; see `n_tokens`."""
        rows = torch.zeros(len(texts), self.context_length, dtype=torch.long)
        for row, text in zip(rows, texts, strict=True):
            ids = [self.start, *self.ids(text)[: self.context_length - 2], self.end]
            row[: len(ids)] = torch.tensor(ids)
        return rows

    def n_tokens(self, text: str) -> int:
        """Positions that the whole text takes, start and end included: more than `context_length` means that it is cut."""
        return len(self.ids(text)) + 2

    def ids(self, text: str) -> list[int]:
        """The text's token ids without start, end, cut or padding. A literal `<|endoftext|>` becomes the end token."""
        return [i for word in _clip_words().findall(clean(text)) for i in _word_ids(word)]


def clean(text: str) -> str:
    """CLIP's cleaning: repair mojibake, unescape HTML twice, collapse white space, lower-case."""
    import ftfy

    text = html.unescape(html.unescape(ftfy.fix_text(text)))
    return " ".join(text.split()).lower()


@functools.cache
def _clip_words():
    """The pattern of one word: a special token, an English contraction, letters, one digit, or other signs."""
    import regex

    contractions = "'s|'t|'re|'ve|'m|'ll|'d"
    return regex.compile(
        rf"<\|startoftext\|>|<\|endoftext\|>|{contractions}|[\p{{L}}]+|[\p{{N}}]|[^\s\p{{L}}\p{{N}}]+", regex.IGNORECASE
    )


@functools.lru_cache(maxsize=1 << 16)
def _word_ids(word: str) -> tuple[int, ...]:
    """The ids of one word: the pair that was merged first in training is merged first."""
    byte_ids, merges = _tables()
    special = {"<|startoftext|>": ClipBPE.start, "<|endoftext|>": ClipBPE.end}
    if word in special:
        return (special[word],)
    ids = [byte_ids[byte] for byte in word.encode("utf-8")]
    ids[-1] += 256  # the same byte at a word's end
    while merged_ids := [merges[pair] for pair in itertools.pairwise(ids) if pair in merges]:
        ids = _merged(ids, min(merged_ids), merges)
    return tuple(ids)


def _merged(ids: list[int], new: int, merges: dict[tuple[int, int], int]) -> list[int]:
    """`ids` with every pair that merges into `new` replaced by it, from left to right."""
    out: list[int] = []
    for i in ids:
        if out and merges.get((out[-1], i)) == new:
            out[-1] = new
        else:
            out.append(i)
    return out


@functools.cache
def _tables() -> tuple[list[int], dict[tuple[int, int], int]]:
    """The id of each byte, and the id that each pair of ids merges into: merge number n makes id 512 + n.

    The file writes a byte as itself where that prints, and as chr(256), chr(257), ... where it does not; ids 0..255 follow
    that order (printable bytes first), 256..511 are the same bytes at a word's end.
    """
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    order = printable + sorted(set(range(256)) - set(printable))
    names = [chr(byte) for byte in printable] + [chr(256 + n) for n in range(256 - len(printable))]
    ids = {name: i for i, name in enumerate(names + [name + "</w>" for name in names])}
    merges = {}
    lines = gzip.decompress(CLIP_VOCABULARY.read_bytes()).decode("utf-8").split("\n")
    for line in lines[1 : ClipBPE.start - 512 + 1]:  # the first line is a heading; CLIP stops after 48,894 merges
        left, right = line.split()
        ids[left + right] = merges[ids[left], ids[right]] = len(ids)
    return [order.index(byte) for byte in range(256)], merges
