"""The run: clips to rationales, several at a time; each is asked for at most three times, each answer kept as it comes.

Started again, a run walks the same conversations; every request that has an answer on disk is answered from there.
"""

import json
import threading
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from tqdm import tqdm

from imagebind_llm.clips.container import MediaError
from imagebind_llm.critic.verifier import fit_verifier
from imagebind_llm.datasets.readers import DataError, Dataset, load_dataset
from imagebind_llm.rationale_writing.acceptance import Judge
from imagebind_llm.rationale_writing.client import (
    ChatClient,
    RationalesError,
    RationaleSettings,
    Stopped,
    Unanswered,
    parameters,
)
from imagebind_llm.rationale_writing.journal import Journal
from imagebind_llm.rationale_writing.pictures import frame_urls
from imagebind_llm.rationale_writing.prompt import (
    VERSION,
    Item,
    about_tokens,
    dialogue_before,
    first_request,
    next_request,
    request_id,
    with_pictures,
)
from imagebind_llm.taxonomy import Taxonomy

MOST_ASKED = 3
UNANSWERED_IN_A_ROW = 5
FOLDS = 5
SHOWN = 2  # requests that a dry run prints


@dataclass(frozen=True)
class Outcome:
    """What came of one clip: its answers in order (rows of the journal), and why it has none, if so."""

    item: Item
    rows: tuple[dict, ...]
    error: str = ""

    @property
    def rationale(self) -> str | None:
        return self.rows[-1].get("rationale") if self.rows else None

    @property
    def status(self) -> str:
        return "unanswered" if self.error else "accepted" if self.rationale is not None else "rejected"


@dataclass
class Summary:
    """A finished run. agreement: by key, what intent a verifier that never saw the rationale reads from it, labels masked."""

    outcomes: list[Outcome]
    n_without_intent: int
    n_asked: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    agreement: dict[str, str] = field(default_factory=dict)

    def table(self) -> list[tuple[str, int]]:
        """The acceptance table: clips by outcome, then refused answers by the rule that they broke first."""
        by_outcome = Counter(f"accepted, asked {len(o.rows)}x" if o.status == "accepted" else o.status for o in self.outcomes)
        rules = Counter(row["rule"] for o in self.outcomes for row in o.rows if "rule" in row)
        rows = [(f"accepted, asked {n}x", by_outcome[f"accepted, asked {n}x"]) for n in range(1, MOST_ASKED + 1)]
        rows += [(name, by_outcome[name]) for name in ("rejected", "unanswered")]
        return rows + [(f"answers refused: {rule}", count) for rule, count in rules.most_common()]

    @property
    def agreement_rate(self) -> float | None:
        """Share of accepted rationales whose masked text tells their label; None where there are too few to fit."""
        checked = [o for o in self.outcomes if o.item.example.key in self.agreement]
        return sum(self.agreement[o.item.example.key] == o.item.intent for o in checked) / len(checked) if checked else None


def load_items(settings: RationaleSettings) -> tuple[Dataset, Taxonomy, list[Item]]:
    """The clips to explain, in file order; rows without an intent of the taxonomy are left out."""
    dataset = load_dataset(settings.data_path, settings.splits)
    if dataset.taxonomy is None:
        raise DataError(
            f"{dataset.root}: names no intents to explain; add the columns split and label, with rows of the split train "
            f"(docs/embeddings.md)"
        )
    taxonomy = dataset.taxonomy
    evidence = read_evidence(Path(settings.evidence), dataset) if settings.evidence else {}
    before = dialogue_before(dataset.examples, settings.context)
    chosen = [example for rows in dataset.splits.values() for example in rows[: settings.limit or None]]
    items = [
        Item(e, e.intent, before.get(e.key, ()), evidence.get(e.key, ""), settings.frames)
        for e in chosen
        if e.intent in taxonomy.labels
    ]
    if settings.frames and not all(item.example.clip and item.example.clip.is_file() for item in items):
        missing = next(item for item in items if not (item.example.clip and item.example.clip.is_file()))
        raise DataError(f"--frames {settings.frames}: clip {missing.example.clip or missing.example.key} is not there")
    return dataset, taxonomy, items


def read_evidence(path: Path, dataset: Dataset) -> dict[str, str]:
    """key -> text, from a TSV with the columns key and text, or the demo world's captions.json."""
    try:
        content = path.read_text(encoding="utf-8-sig")
        if path.suffix == ".json":
            texts = {row["key"]: row["caption"] for row in json.loads(content)}
        else:
            header, *lines = (line.split("\t") for line in content.splitlines() if line.strip())
            place = [header.index("key"), header.index("text")]
            texts = {line[place[0]]: line[place[1]].strip() for line in lines}
    except (OSError, ValueError, KeyError, IndexError, TypeError) as error:
        raise DataError(f"--evidence {path}: expected a TSV with the columns key and text ({error})") from error
    if not set(texts) & {example.key for example in dataset.examples}:
        raise DataError(f"--evidence {path}: none of its {len(texts)} keys is in {dataset.root}; keys look like S05_E16_329")
    return texts


def preview(settings: RationaleSettings) -> str:
    """The first requests in full, and how much a whole run would ask: what --dry_run prints."""
    _, taxonomy, items = load_items(settings)
    requests = [first_request(item, taxonomy) for item in items]
    shown = [
        f"=== request {i} of {len(requests)}: {item.example.key}\n"
        + "\n".join(f"[{m['role']}]\n{m['content']}" for m in messages)
        for i, (item, messages) in enumerate(zip(items, requests, strict=True), 1)
        if i <= SHOWN
    ]
    total = sum(map(about_tokens, requests))
    pictures = f", {settings.frames} frames each" if settings.frames else ""
    summary = (
        f"prompt {VERSION}: {len(requests)} first requests, about {total:,} tokens to send (4 characters a token{pictures})"
    )
    return "\n".join(
        [*shown, f"{summary}, about {80 * len(requests):,} to receive; asking again costs more. Nothing was sent."]
    )


def write_rationales(settings: RationaleSettings) -> Summary:
    """Ask for every rationale that is not there yet. Raises RationalesError, DataError or LockedError with the way out."""
    dataset, taxonomy, items = load_items(settings)
    with Journal(Path(settings.output), settings.model) as journal:
        run = _Run(settings, taxonomy, journal)
        outcomes = run.all(items)
        n_without = sum(example.intent not in taxonomy.labels for example in dataset.examples)
        summary = Summary(outcomes, n_without, *run.costs)
        journal.settle([example.key for example in dataset.examples], _overtaken(journal, outcomes))
    summary.agreement = agreement([o for o in outcomes if o.rationale is not None], taxonomy)
    return summary


def _overtaken(journal: Journal, outcomes: Sequence[Outcome]) -> set[str]:
    """Requests of accepted rows that are no longer what would be asked about their clip."""
    current = {o.item.example.key: {row["request"] for row in o.rows} for o in outcomes}
    rows = [row for row in journal.answers.values() if "rationale" in row and row["key"] in current]
    return {row["request"] for row in rows if row["request"] not in current[row["key"]]}


class _Run:
    """The threads' shared state: who asks, who judges, what was spent, and whether to stop."""

    def __init__(self, settings: RationaleSettings, taxonomy: Taxonomy, journal: Journal):
        self._settings, self._taxonomy, self._journal = settings, taxonomy, journal
        self._stop, self._counting = threading.Event(), threading.Lock()
        self._client: ChatClient | None = None
        accepted = {row["key"]: row["rationale"] for row in journal.answers.values() if "rationale" in row}
        self._judge = Judge(taxonomy, accepted)
        self.costs = (0, 0, 0)  # requests, prompt tokens, completion tokens
        self._unanswered = 0

    def all(self, items: Sequence[Item]) -> list[Outcome]:
        """The outcomes in the order of items. When it must end early, what is under way is awaited and kept: it is paid for."""
        with ThreadPoolExecutor(self._settings.concurrency) as pool:
            jobs = [pool.submit(self._answer_or_ask, item) for item in items]
            bar = tqdm(total=len(jobs), desc="rationales", unit="clip")
            try:
                for job in as_completed(jobs):
                    job.result()
                    bar.update()
                    bar.set_postfix_str(f"{self.costs[1]:,} tokens sent, {self.costs[2]:,} received")
            except BaseException as error:
                self._stop.set()
                pool.shutdown(wait=True, cancel_futures=True)
                failures = [job.exception() for job in jobs if not job.cancelled()]
                if cause := next((failure for failure in failures if isinstance(failure, RationalesError)), None):
                    kept = sum("rationale" in row for row in self._journal.answers.values())
                    raise RationalesError(f"{cause}. {kept} rationales are in {self._settings.output}") from error
                raise
            finally:
                bar.close()
        return [job.result() for job in jobs]

    def _answer_or_ask(self, item: Item) -> Outcome:
        """Ask, judge, ask again with the reason: from the journal where it has the answer, else from the endpoint."""
        messages, rows = first_request(item, self._taxonomy), []
        try:
            for attempt in range(1, MOST_ASKED + 1):
                request = request_id(messages, parameters(self._settings))
                row = self._journal.answers.get(request) or self._asked(item, messages, request, attempt)
                rows.append(row)
                if "rationale" in row:
                    break
                messages = next_request(messages, row["answer"], row["reason"])
        except (Unanswered, MediaError) as error:
            return Outcome(item, tuple(rows), str(error))
        except RationalesError:
            self._stop.set()  # here, before another thread asks in vain
            raise
        return Outcome(item, tuple(rows))

    def _asked(self, item: Item, messages: list[dict], request: str, attempt: int) -> dict:
        """Send one request and record its answer."""
        if self._stop.is_set():
            raise Stopped
        clip = item.example.clip
        pictures = frame_urls(clip, item.n_frames) if clip and item.n_frames else []
        try:
            reply = self._connected().ask(with_pictures(messages, pictures))
        except Unanswered as error:
            self._count_unanswered(error)
            raise
        verdict = self._judge.verdict(reply.text, reply.finish_reason, reply.refused, item)
        row: dict = {"key": item.example.key, "intent": item.intent}
        if verdict.rationale is not None:
            row["rationale"] = verdict.rationale
        else:
            row |= {"answer": reply.text, "rule": verdict.rule, "reason": verdict.reason}
        row |= {"split": item.example.split, "model": self._settings.model, "prompt": VERSION, "request": request}
        row |= {"attempt": attempt, "prompt_tokens": reply.prompt_tokens, "completion_tokens": reply.completion_tokens}
        self._journal.record(row)
        with self._counting:
            self._unanswered = 0
            n_asked, sent, received = self.costs
            self.costs = (n_asked + 1, sent + reply.prompt_tokens, received + reply.completion_tokens)
        return row

    def _connected(self) -> ChatClient:
        """The client, made when the first question is asked: a run that has every answer needs no key."""
        with self._counting:
            self._client = self._client or ChatClient(self._settings, self._stop)
            return self._client

    def _count_unanswered(self, error: Unanswered) -> None:
        with self._counting:
            self._unanswered += 1
            if self._unanswered >= UNANSWERED_IN_A_ROW:
                raise RationalesError(f"{self._unanswered} questions in a row got no answer; the last: {error}") from error


def agreement(outcomes: Sequence[Outcome], taxonomy: Taxonomy, seed: int = 0) -> dict[str, str]:
    """By key, the intent that a verifier reads from each label-masked rationale; it was fitted on the other four fifths.

    Empty where there are fewer than 50 rationales: a fold would be too small to say anything.
    """
    if len(outcomes) < 50:
        return {}
    fold = np.random.default_rng(seed).permutation(len(outcomes)) % FOLDS
    texts, intents = [o.rationale or "" for o in outcomes], [o.item.intent for o in outcomes]
    read: dict[str, str] = {}
    for number in range(FOLDS):
        rest, held = ([i for i in range(len(outcomes)) if (fold[i] == number) == held_out] for held_out in (False, True))
        if len({intents[i] for i in rest}) < 2:
            return {}
        verifier = fit_verifier([texts[i] for i in rest], [intents[i] for i in rest], taxonomy)
        predicted = verifier.predict_proba([texts[i] for i in held]).argmax(1)
        read |= {outcomes[i].item.example.key: taxonomy.labels[label] for i, label in zip(held, predicted, strict=True)}
    return read
