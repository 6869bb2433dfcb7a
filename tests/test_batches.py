"""Every row once an epoch, the same steps however they are shared out, and batches that say the truth about their rows."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_itsl import random_itsl

from imagebind_llm.corpus.batches import Collator, by_length, load, shares, steps_of_epoch
from imagebind_llm.encoder.store import Identity, StoreWriter
from imagebind_llm.encoder.store import Store as Embeddings
from imagebind_llm.itsl.losses import intent_cross_entropy, rationale_nll
from imagebind_llm.itsl.model import ITSL
from imagebind_llm.records import IGNORE, Sequence

ROW = Sequence("a", (1, 7, 8, 9, 2), 2, intent=3)


@pytest.fixture
def store(tmp_path) -> Embeddings:
    """Embeddings of width 12 of the clips a, b, c; c was not heard."""
    vectors = torch.randn(3, 3, 12, generator=torch.Generator().manual_seed(0))
    present = torch.tensor([[1, 1, 1], [1, 1, 1], [1, 0, 1]]).bool()
    identity = Identity("imagebind_tiny", "0", "float32", ("text", "audio", "vision"), "to_end", False, 12, "1")
    with StoreWriter(tmp_path / "emb", identity) as writer:
        writer.append(["a", "b", "c"], vectors * present[..., None], present, [1, 2, 3])
    return Embeddings(tmp_path / "emb")


# --- which rows ---


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 50), max_size=90), st.integers(1, 5), st.integers(1, 4), st.integers(1, 3), st.integers(0, 3))
def test_every_row_is_seen_once_an_epoch_by_any_number_of_ranks_and_passes(lengths, batch, ranks, passes, epoch):
    steps = steps_of_epoch(lengths, batch * ranks * passes, 7, epoch)
    dealt = [shares(step, ranks, passes) for step in steps]
    assert sorted(row for step in dealt for rank in step for rows in rank for row in rows) == list(range(len(lengths)))
    assert all(len(rows) <= batch for step in dealt for rank in step for rows in rank)
    assert sum(len(step) < batch * ranks * passes for step in steps) <= 1


@pytest.mark.parametrize("n_rows", [1, 7, 64, 83])
def test_one_rank_two_ranks_and_accumulation_take_the_same_steps(n_rows):
    lengths = [10 + (7 * i) % 13 for i in range(n_rows)]
    ways = {}
    for batch, ranks, passes in ((8, 1, 1), (4, 2, 1), (2, 1, 4), (2, 2, 2), (1, 8, 1)):
        steps = steps_of_epoch(lengths, batch * ranks * passes, 0, 3)
        ways[batch, ranks, passes] = [sorted(itertools.chain(*itertools.chain(*shares(s, ranks, passes)))) for s in steps]
    assert len({str(steps) for steps in ways.values()}) == 1


def test_epochs_and_seeds_differ_and_nothing_else_does():
    lengths = list(range(1, 101))
    one = steps_of_epoch(lengths, 8, 0, 0)
    assert one == steps_of_epoch(lengths, 8, 0, 0)
    assert one != steps_of_epoch(lengths, 8, 0, 1) and one != steps_of_epoch(lengths, 8, 1, 0)
    state = torch.random.get_rng_state()
    steps_of_epoch(lengths, 8, 0, 2)
    assert torch.equal(state, torch.random.get_rng_state())


def test_rows_of_similar_length_meet_in_a_step():
    lengths = torch.randint(20, 200, (640,), generator=torch.Generator().manual_seed(1)).tolist()
    steps = steps_of_epoch(lengths, 8, 0, 0)
    padded = sum(len(step) * max(lengths[row] for row in step) for step in steps)
    assert padded < 1.2 * sum(lengths)  # 1.7 in a random order
    assert max(map(len, by_length(lengths, 8))) == 8
    assert sorted(itertools.chain(*by_length(lengths, 9))) == list(range(640))


# --- what a batch says ---


def test_targets_stand_at_the_answers_own_places_and_padding_has_none():
    batch = Collator(None, ())([ROW, Sequence("b", (1, 5, 2), 1)])
    assert batch.tokens.tolist() == [[1, 7, 8, 9, 2], [1, 5, 2, 0, 0]]
    x = IGNORE
    assert batch.targets.tolist() == [[x, x, 8, 9, 2], [x, 5, 2, x, x]]
    assert batch.n_prompt.tolist() == [2, 1] and batch.intents.tolist() == [3, IGNORE]
    assert batch.keys == ("a", "b") and batch.embeddings is None and batch.present is None


def test_embeddings_are_the_stores_and_a_row_without_a_clip_has_none(store):
    rows = [Sequence(key, (1, 2), 1, embedded=True) for key in ("c", "a")] + [Sequence("row 3", (1, 2), 1)]
    batch = Collator(store, ("text", "audio", "vision"))(rows)
    wanted, present = store.read(["c", "a"])
    assert torch.equal(batch.embeddings[:2], wanted) and not batch.embeddings[2].any()
    assert torch.equal(batch.present, torch.cat([present, torch.zeros(1, 3, dtype=torch.bool)]))


@pytest.mark.parametrize("modalities", [("audio",), ("text", "vision"), ()])
def test_a_modality_that_is_not_wanted_is_masked(store, modalities):
    rows = [Sequence(key, (1, 2), 1, embedded=True) for key in ("a", "c")]
    _, there = store.read(["a", "c"])
    wanted = there & torch.tensor([name in modalities for name in ("text", "audio", "vision")])
    assert torch.equal(Collator(store, modalities)(rows).present, wanted)


def changes(model: ITSL, batch) -> tuple[float, float]:
    """The size of the loss and of the largest gradient that a batch gives."""
    model.zero_grad()
    output = model(batch)
    loss = rationale_nll(output.logp, output.mask, 10) + intent_cross_entropy(output.intent_logits, batch.intents, 3)
    loss.backward()
    largest = max(float(p.grad.abs().max()) for p in model.parameters() if p.requires_grad and p.grad is not None)
    return float(loss.detach()), largest


def test_a_batch_for_a_rank_without_rows_has_no_effect_at_all(store):
    base = random_itsl("separate", lora_rank=2)
    model = ITSL(base.llama.config, base.prompt_config, None, n_intents=4)
    model.load_state_dict(base.state_dict(), strict=False)  # without the bridge, with a head
    model.train_only("all")
    collate = Collator(None, ())
    assert changes(model, collate.without_targets(ROW)) == (0.0, 0.0)
    assert min(changes(model, collate([ROW]))) > 0


def test_a_plan_is_read_in_order_with_a_stand_in_for_a_pass_without_rows():
    rows = [Sequence(str(i), (1, i, 2), 1, intent=i) for i in range(5)]
    for workers in (0, 1):
        batches = list(load(rows, [[3, 1], [], [4]], Collator(None, ()), workers, torch.device("cpu")))
        assert [b.keys for b in batches] == [("3", "1"), ("0",), ("4",)]
        assert batches[0].intents.tolist() == [3, 1] and batches[1].intents.tolist() == [IGNORE]
        assert (batches[1].targets == IGNORE).all()


def test_a_batch_moves_with_all_its_tensors():
    batch = Collator(None, ())([ROW]).to(torch.device("meta"))
    assert all(part.is_meta for part in (batch.tokens, batch.targets, batch.n_prompt, batch.intents)) and batch.keys == ("a",)
