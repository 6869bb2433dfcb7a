"""One clip of a visitor: checked, embedded once, then answered for any of its modalities as often as they like.

    model = PageModel.load(WebSettings("runs/demo/itsl/best"))
    seen, inputs = model.look(Path("clip.mp4"), None)
    seen = model.read(seen, "what is said")
    explanation = model.answer(seen, ("text", "audio", "vision"))
    others = model.without(seen, ("text", "audio", "vision"))      # {"text": the answer without the words, ...}

What is kept between answers (Seen) holds embeddings and answers: no file, no path, no picture. What a visitor did wrong is a
PageError, whose text names the file as they named it and never where it lies.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from imagebind_llm import distributed
from imagebind_llm.clips.container import MediaError, clip_seconds
from imagebind_llm.config import MODALITIES
from imagebind_llm.critic.checked_claims import CheckedClaim, ClaimCheck, has_judge
from imagebind_llm.datasets.readers import DataError, folder_of, load_dataset
from imagebind_llm.encoder.clip_encoder import ClipEncoder
from imagebind_llm.encoder.store import identity_of
from imagebind_llm.encoder.weights import file_sha256
from imagebind_llm.explain.cue_table import CueTable
from imagebind_llm.explain.explainer import MAX_NEW_TOKENS, Explainer, Explanation
from imagebind_llm.explain.faithfulness import true_cues
from imagebind_llm.explain.loading import load_explainer
from imagebind_llm.explain.rationales import read_rationales
from imagebind_llm.flags import flag
from imagebind_llm.records import Example

MAX_CHARACTERS = 500  # of what is said
N_EXAMPLES = 3
MB = 2**20  # bytes
IN_FILE = tuple(name for name in MODALITIES if name != "text")  # what comes with a clip's file; its words are typed
EXPECTED = "expected a clip of picture and sound, such as mp4, mov or webm"

Inputs = dict[str, tuple[Tensor, tuple[int, ...]]]  # clip_encoder.Encoded.inputs


@dataclass(frozen=True)
class WebSettings:
    """The flags of web_demo.py."""

    checkpoint: str = flag(help="checkpoint folder of engine_finetune.py, such as runs/demo/itsl/best")
    data_path: str = flag("data/demo/clips", "data set with clips; three of its test split are offered as examples")
    host: str = flag("127.0.0.1", "address to listen on; 0.0.0.0: also for other machines")
    port: int = flag(7860, "port to listen on; 0: any free port")
    max_mb: float = flag(20.0, "largest file that is accepted, in MB")
    max_seconds: float = flag(30.0, "longest clip that is accepted, in seconds")
    llama_model_path: str = flag("", "path of the LLaMA; if not given, the one that the checkpoint names")
    encoder_weights: str = flag("", "weights of the encoder; if not given, checkpoints/ENCODER.safetensors or .pth")
    judge: str = flag("", "checkpoint folder with the judge of claims; if not given, --checkpoint")
    max_new_tokens: int = flag(MAX_NEW_TOKENS, "largest number of tokens of a rationale")
    device: str = flag("auto", "auto: cuda if available, else cpu", ("auto", "cpu", "cuda"))
    dtype: str = flag("auto", "dtype of frozen weights; auto: bfloat16 on a GPU, else float32", ("auto", "float32", "bfloat16"))

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1 or not 0 <= self.port < 2**16:
            raise ValueError(f"--max_new_tokens {self.max_new_tokens} --port {self.port}: at least 1, and 0 to 65535")
        for name in ("max_mb", "max_seconds"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ValueError(f"--{name} {getattr(self, name):g}: above 0, and finite")


class PageError(ValueError):
    """What a visitor gave cannot be answered; the text says why, in a sentence for them."""


@dataclass(frozen=True)
class ClipFacts:
    """What the data set knows of a clip: its words, its label and, in the demo world, its true cues with their table."""

    text: str
    intent: str | None
    cues: Mapping[str, str] | None
    table: CueTable | None = None


@dataclass(frozen=True)
class Seen:
    """What is kept of a clip: embeddings (1,M,E), presence (1,M), what could not be used, and the answers so far by modalities.

    `source` tells one upload from another.
    """

    source: str
    text: str
    vectors: Tensor
    present: Tensor
    notes: tuple[str, ...] = ()
    facts: ClipFacts | None = None
    answers: dict[tuple[str, ...], Explanation] = field(default_factory=dict)

    @property
    def modalities(self) -> tuple[str, ...]:
        """The modalities that the clip has and the model looks at."""
        return tuple(name for name, present in zip(MODALITIES, self.present[0].tolist(), strict=True) if present)

    @property
    def truth(self) -> ClipFacts | None:
        """What is known of the clip, as long as its words are its own."""
        return self.facts if self.facts is not None and self.facts.text == self.text else None


class PageModel:
    """A trained model, the encoder of its embeddings and the limits of the page."""

    def __init__(
        self,
        explainer: Explainer,
        encoder: ClipEncoder | None,
        settings: WebSettings,
        examples: Sequence[Example],
        check: ClaimCheck | None = None,
    ):
        """`check`: what holds claims against a clip; None: nothing does."""
        self.explainer, self.encoder, self.settings, self.check = explainer, encoder, settings, check
        self.modalities = explainer.modalities if encoder else ("text",)  # without embeddings: the words in the prompt
        self.examples = list(examples)
        self._known = _known_by_content(examples, Path(settings.data_path))

    @classmethod
    def load(cls, settings: WebSettings) -> "PageModel":
        """Raises CheckpointError, DataError, WeightsError, ValueError: all of it before the first visitor comes."""
        device = distributed.choose_device(settings.device)
        explainer = load_explainer(Path(settings.checkpoint), settings.llama_model_path, device, settings.dtype)
        encoder = check = None
        if explainer.needs_embeddings and explainer.store_identity is not None:
            weights, place = settings.encoder_weights, explainer.device
            encoder = ClipEncoder.load(explainer.store_identity, weights, place)
            if settings.judge or has_judge(Path(settings.checkpoint)):
                folder, identity = Path(settings.judge or settings.checkpoint), identity_of(explainer.store_identity)
                check = ClaimCheck.load(folder, identity, explainer.taxonomy, weights, place)
        elif settings.judge:
            raise DataError(f"--judge {settings.judge}: {settings.checkpoint} knows the words alone; leave --judge out")
        return cls(explainer, encoder, settings, find_examples(Path(settings.data_path)), check)

    @property
    def takes_files(self) -> bool:
        return any(name in self.modalities for name in IN_FILE)

    # --- looking ------------------------------------------------------------------------------------------------------

    def look(self, clip: Path | None, before: Seen | None) -> tuple[Seen, Inputs | None]:
        """Embed what a file holds, and return it with what the towers were given; `before` and None if it is of this very file.

        Raises PageError for a file that is not there, too large, too long, or of no use.
        """
        source = hashlib.sha256(str(clip).encode()).hexdigest() if clip else ""
        if before is not None and before.source == source:
            return before, None
        return self._look_at_file(clip, source)

    def read(self, seen: Seen, text: str) -> Seen:
        """The same clip with these words; answers about other words are dropped. Raises PageError if there are too many."""
        text = _one_line(text)
        if len(text) > MAX_CHARACTERS:
            raise PageError(f"The text has {len(text)} characters; at most {MAX_CHARACTERS} are taken.")
        if text == seen.text:
            return seen
        column = MODALITIES.index("text")
        vectors, present = seen.vectors.clone(), seen.present.clone()
        if self.encoder is None:
            present[0, column] = bool(text)
        elif "text" in self.modalities:
            encoded = self.encoder.encode(Example("clip", "all", None, text), ("text",))
            vectors[0, column], present[0, column] = encoded.vectors[0, column], encoded.present[0, column]
        return replace(seen, text=text, vectors=vectors, present=present, answers={})

    def _look_at_file(self, clip: Path | None, source: str) -> tuple[Seen, Inputs]:
        shape = (1, len(MODALITIES))
        width = self.encoder.spec.width if self.encoder else 1  # without an encoder nothing looks at the vectors
        nothing = Seen(source, "", torch.zeros(*shape, width), torch.zeros(shape, dtype=torch.bool))
        wanted = [name for name in self.modalities if name in IN_FILE]
        if clip is None or self.encoder is None or not wanted:
            return nothing, {}
        self._check_file(clip)
        encoded = self.encoder.encode(Example("clip", "all", clip, ""), wanted)
        notes = tuple(f"{failure.modality} is not used: {_unplaced(failure.reason, clip)}" for failure in encoded.failures)
        if not encoded.present.any():
            raise PageError(f"Nothing of {clip.name} can be used ({'; '.join(notes)}); {EXPECTED}.")
        facts = self._known.get(file_sha256(clip))
        return replace(nothing, vectors=encoded.vectors, present=encoded.present, notes=notes, facts=facts), encoded.inputs

    def _check_file(self, clip: Path) -> None:
        """Size and length, before anything is decoded."""
        if not clip.is_file():
            raise PageError(f"{clip.name} is no longer on the server, where files are removed after use: upload it again.")
        megabytes = clip.stat().st_size / MB
        if megabytes > self.settings.max_mb:
            raise PageError(f"{clip.name} has {megabytes:.1f} MB; at most {self.settings.max_mb:g} MB are taken.")
        try:
            seconds = clip_seconds(clip, self.settings.max_seconds)
        except MediaError as error:
            raise PageError(f"{clip.name} {_unplaced(str(error), clip)}; {EXPECTED}.") from error
        if seconds > self.settings.max_seconds:
            raise PageError(f"{clip.name} lasts longer than {self.settings.max_seconds:g} s, the longest that is taken.")

    # --- answering ----------------------------------------------------------------------------------------------------

    def answer(self, seen: Seen, modalities: Sequence[str]) -> Explanation:
        """The answer from those of `modalities` that are there. Raises PageError if none is."""
        chosen = self.chosen(seen, modalities)
        self._explain(seen, [chosen])
        return seen.answers[chosen]

    def without(self, seen: Seen, modalities: Sequence[str]) -> dict[str, Explanation]:
        """By modality, the answer without it; empty where only one is left. Costs one batch, and nothing the second time."""
        chosen = self.chosen(seen, modalities)
        if len(chosen) < 2:
            return {}
        rest = {name: tuple(other for other in chosen if other != name) for name in chosen}
        self._explain(seen, list(rest.values()))
        return {name: seen.answers[kept] for name, kept in rest.items()}

    def chosen(self, seen: Seen, modalities: Sequence[str]) -> tuple[str, ...]:
        """The modalities that an answer may look at. Raises PageError if there are none."""
        if not seen.modalities:
            raise PageError(f"There is nothing to look at: the model knows {', '.join(self.modalities)}; give it one of them.")
        chosen = tuple(name for name in seen.modalities if name in modalities)
        if not chosen:
            raise PageError(f"Nothing is left to look at: choose at least one of {', '.join(seen.modalities)}.")
        return chosen

    def claims(self, seen: Seen, rationale: str) -> list[CheckedClaim]:
        """The claims of a rationale held against all that is known of the clip, also what the answer was not to look at; none
        without a judge."""
        return self.check(rationale, seen.vectors[0], seen.present[0]) if self.check else []

    def _explain(self, seen: Seen, subsets: Sequence[tuple[str, ...]]) -> None:
        """Fill in the answers that are not there yet, side by side. Without the text its words leave the prompt, too."""
        new = [subset for subset in subsets if subset not in seen.answers]
        if not new:
            return
        examples = [Example("clip", "all", None, seen.text if "text" in subset else "") for subset in new]
        present = torch.tensor([[name in subset for name in MODALITIES] for subset in new])
        vectors = seen.vectors.expand(len(new), -1, -1)
        explanations = self.explainer.explain(examples, vectors, present, self.settings.max_new_tokens)
        seen.answers.update(zip(new, explanations, strict=True))


def find_examples(data_path: Path) -> list[Example]:
    """Clips of the test split with different intents; none where there is no such data set or its clips are not there."""
    if not data_path.exists():
        return []
    chosen: dict[str | None, Example] = {}
    for example in load_dataset(data_path, ("test",)).examples:
        if example.clip is not None and example.clip.is_file():
            chosen.setdefault(example.intent, example)
    return list(chosen.values())[:N_EXAMPLES]


def _known_by_content(examples: Sequence[Example], data_path: Path) -> dict[str, ClipFacts]:
    """What is known of the example clips, by the SHA-256 of their files: an upload has no key."""
    try:
        rows = read_rationales(folder_of(data_path) / "rationales.jsonl")
    except DataError:
        rows = {}
    facts = {}
    for example in examples:
        if example.clip is not None:
            row = rows.get(example.key)
            cues, table = (true_cues(row), row.table) if row and row.cues else (None, None)
            facts[file_sha256(example.clip)] = ClipFacts(_one_line(example.text), example.intent, cues, table)
    return facts


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _unplaced(reason: str, clip: Path) -> str:
    """The reason with the file's name in place of its path on the server."""
    return reason.replace(str(clip), clip.name)
