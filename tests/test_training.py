"""Schedule, groups and whole training runs equal the public program's; a step does not depend on how its rows are shared."""

import json
import math
from dataclasses import replace

import golden_llama
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from sklearn.metrics import f1_score
from tiny_itsl import random_itsl

from imagebind_llm import distributed
from imagebind_llm.corpus.batches import Collator
from imagebind_llm.itsl.losses import rationale_nll
from imagebind_llm.itsl.model import ITSL
from imagebind_llm.records import IGNORE, Batch, Output, Sequence
from imagebind_llm.training.epoch import Position, evaluate, train_one_epoch
from imagebind_llm.training.frozen_states import compute_states
from imagebind_llm.training.schedule import lr_at, make_optimizer, parameter_groups, peak_lr
from imagebind_llm.training.settings import TrainSettings
from imagebind_llm.training.step import Sums, TrainingError, counts_of, train_step

GOLDEN = json.loads((golden_llama.FOLDER / "g_optim.json").read_text())
RUNS = json.loads((golden_llama.FOLDER / "t_train.json").read_text())
CPU = torch.device("cpu")
SETTINGS = TrainSettings(data_path="x", epochs=5, warmup_epochs=2)


# --- schedule and groups ---


@pytest.mark.parametrize("case", GOLDEN["schedules"], ids=lambda case: str(case["args"]))
def test_learning_rate_equals_the_public_schedule(case):
    args = case["args"]
    settings = replace(SETTINGS, epochs=args["epochs"], warmup_epochs=args["warmup_epochs"], min_lr=args["min_lr"])
    for epoch, lr in case["epoch_lr"]:
        assert lr_at(epoch, args["lr"], settings) == pytest.approx(lr, rel=1e-12, abs=1e-18)


def test_the_peak_is_blr_for_256_rows_a_step_unless_lr_is_given():
    settings = replace(SETTINGS, blr=9e-3, batch_size=4, accum_iter=1)
    assert peak_lr(settings, 8) == pytest.approx(9e-3 * 32 / 256)
    assert peak_lr(replace(settings, accum_iter=4), 2) == peak_lr(settings, 8)
    assert peak_lr(replace(settings, lr=0.5), 8) == 0.5


@pytest.mark.parametrize("name", GOLDEN["groups"])
def test_weight_decay_groups_equal_the_public_ones(name):
    case = {"b": "b_ib_finetune", "c": "c_ib_pretrain", "d": "d_ib_legacy"}[name[0]]
    model = golden_llama.model(case)
    model.train_only("lora" if name[0] == "b" else "prompts")
    names = {parameter: key for key, parameter in model.named_parameters()}
    groups = {group["weight_decay"]: {names[p] for p in group["params"]} for group in parameter_groups(model, 0.05)}
    for decay, key in ((0.0, "weight_decay_0"), (0.05, "weight_decay_given")):
        wanted = {golden_llama.our_name(public) for public in GOLDEN["groups"][name][key]}
        unprompted = {f"llama.layers.{i}.attention.gate" for i in range(4)} - set(model.trainable_parameters("prompts"))
        assert groups[decay] == wanted - unprompted  # a gate of a layer without prompts has no gradient; ours stays frozen


def test_gates_alone_learn_at_their_own_rate():
    model = random_itsl(None, lora_rank=2)
    model.train_only("all")
    names = {parameter: name for name, parameter in model.named_parameters()}
    groups = parameter_groups(model, 0.05, gate_lr=20)
    scales = {names[p]: group["lr_scale"] for group in groups for p in group["params"]}
    assert scales == {name: 20.0 if name.endswith(".gate") else 1.0 for name in model.trainable_parameters("all")}
    assert {names[p] for group in parameter_groups(model, 0.05) for p in group["params"]} == set(scales)


def test_an_epoch_gives_the_gates_their_rate():
    model = random_itsl(None, lora_rank=2)
    model.train_only("all")
    optimizer = make_optimizer(model, 0.05, gate_lr=20)
    settings = replace(SETTINGS, lr=1e-3, warmup_epochs=0.0, epochs=1, batch_size=8)
    plain = [Sequence(row.key, row.ids, row.n_prompt) for row in rows()]  # no intents: this model has no head
    [moment] = train_one_epoch(model, optimizer, plain, Collator(None, ()), settings, CPU, Position())
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([moment.lr, moment.lr, 20 * moment.lr])
    assert moment.lr == pytest.approx(1e-3)


@pytest.mark.parametrize("stage", ["pretrain", "finetune"])
def test_twelve_iterations_end_with_the_public_weights(stage):
    config, tensors = RUNS[stage]["config"], load_file(golden_llama.FOLDER / "t_train.safetensors")
    model = golden_llama.model(config["start_weights"])
    model.train_only("prompts" if stage == "pretrain" else "lora")
    settings = replace(SETTINGS, epochs=config["epochs"], warmup_epochs=config["warmup_epochs"], min_lr=config["min_lr"])
    optimizer = make_optimizer(model, config["weight_decay"])
    for iteration, (wanted_loss, wanted_lr) in enumerate(RUNS[stage]["loss_and_lr"]):
        number = iteration % config["batches"]
        if iteration % config["accum_iter"] == 0:
            lr = lr_at(iteration / config["batches"], config["lr"], settings)
            assert lr == pytest.approx(wanted_lr)
            for group in optimizer.param_groups:
                group["lr"] = lr
        labels = tensors[f"{stage}.io.labels"][number]
        embedding = tensors[f"{stage}.io.embedding"][number][:, None]
        targets = labels.masked_fill(labels == 0, IGNORE)
        output = model(Batch(tensors[f"{stage}.io.tokens"][number], targets, embedding, torch.ones(len(labels), 1)))
        loss = rationale_nll(output.logp, output.mask)
        assert float(loss) == pytest.approx(wanted_loss, abs=2e-4)
        (loss / config["accum_iter"]).backward()
        if iteration % config["accum_iter"]:
            optimizer.step()
            optimizer.zero_grad()
    parameters = dict(model.named_parameters())
    start = dict(golden_llama.model(config["start_weights"]).named_parameters())
    moved = 0
    for name, final in tensors.items():
        if name.startswith(f"{stage}.final."):
            ours = golden_llama.our_name(name.removeprefix(f"{stage}.final."))
            torch.testing.assert_close(parameters[ours].detach(), final, atol=2e-4, rtol=0, msg=lambda m, n=ours: f"{n}: {m}")
            moved += bool((parameters[ours] - start[ours]).abs().max() > 0.01)
    assert moved > 10


# --- one step ---


def rows(count: int = 8) -> list[Sequence]:
    draw = torch.Generator().manual_seed(1)
    found = []
    for i in range(count):
        length = 5 + (3 * i) % 7
        ids = torch.randint(3, 60, (length,), generator=draw).tolist()
        found.append(Sequence(f"row {i}", tuple(ids), 2 + i % 3, intent=None if i == 3 else i % 4))
    return found


def head_model(rank: int = 2, layers: int | None = None) -> ITSL:
    """Gates open, LoRA on, with an intent head that says something."""
    base = random_itsl(None, lora_rank=rank)
    torch.manual_seed(5)
    model = ITSL(base.llama.config, replace(base.prompt_config, lora_layers=layers), None, n_intents=4)
    model.load_state_dict(base.state_dict(), strict=False)  # the head is its own; with fewer LoRA layers some are left over
    torch.nn.init.normal_(model.intent_head.linear.weight, std=0.1)
    for name, parameter in model.named_parameters():
        if name.endswith("l2.weight"):
            torch.nn.init.normal_(parameter, std=0.1)
    model.train_only("all")
    return model


def gradients(parts: list[list[Sequence]], settings: TrainSettings = SETTINGS, collate=None, model=None) -> dict:
    """Gradients of one step whose rows are dealt into these passes, as the optimizer sees them."""
    model = model or head_model()
    collate = collate or Collator(None, ())
    seen: dict = {}

    class Watching(torch.optim.SGD):
        def step(self, closure=None):
            seen.update({n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None})

    optimizer = Watching([p for p in model.parameters() if p.requires_grad], lr=0.0)
    passes = [collate(part) if part else collate.without_targets(rows()[0]) for part in parts]
    counts = counts_of([row for part in parts for row in part])
    seen["norm"] = torch.tensor(train_step(model, optimizer, passes, counts, settings, Sums()))
    return seen


def same(one: dict, other: dict, atol: float = 2e-6) -> None:
    assert one.keys() == other.keys() and len(one) > 20
    for name in one:
        torch.testing.assert_close(one[name], other[name], atol=atol, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("sizes", [(4, 4), (1, 7), (3, 0, 5), (1,) * 8])
def test_the_gradient_does_not_depend_on_how_rows_are_split_into_passes(sizes):
    all_rows, parts, start = rows(), [], 0
    for size in sizes:
        parts.append(all_rows[start : start + size])
        start += size
    settings = replace(SETTINGS, clip_grad=0.0)
    same(gradients([all_rows], settings), gradients(parts, settings))


def test_activation_checkpointing_changes_no_gradient():
    same(gradients([rows()]), gradients([rows()], replace(SETTINGS, checkpoint_activations=True)))


def test_states_below_the_adapted_layers_change_no_gradient_and_no_loss(tmp_path):
    model = head_model(layers=2)
    assert model.llama.lowest == 1
    states = compute_states(tmp_path / "states", rows(), model.llama, CPU, 3)
    with_states, without = Collator(None, (), states), Collator(None, ())
    torch.testing.assert_close(model(with_states(rows())).logp, model(without(rows())).logp, atol=1e-6, rtol=0)
    same(gradients([rows()], collate=with_states, model=model), gradients([rows()], model=model))


def test_a_machine_computes_the_states_of_all_rows_whatever_others_do(tmp_path, monkeypatch):
    """The ranks of other machines write to other files, perhaps on other disks."""
    model = head_model(layers=2)
    whole = compute_states(tmp_path / "one", rows(), model.llama, CPU, 3).batch(rows())
    monkeypatch.setattr(distributed, "rank", lambda: 1)
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    assert torch.equal(compute_states(tmp_path / "other", rows(), model.llama, CPU, 3).batch(rows()), whole)


def test_each_weight_scales_its_own_loss():
    free = replace(SETTINGS, clip_grad=0.0)
    both, nll, head = (
        gradients([rows()], replace(free, w_intent=i, w_rationale=r)) for i, r in ((2.0, 0.5), (0.0, 1.0), (1.0, 0.0))
    )
    for name in both.keys() - {"norm"}:
        torch.testing.assert_close(both[name], 2 * head[name] + 0.5 * nll[name], atol=2e-6, rtol=1e-4)
    assert not nll["intent_head.linear.weight"].any() and head["intent_head.linear.weight"].any()
    assert nll["prefix_query.weight"].any(), "an answer is learnt without the head too"


def test_a_step_is_multiplied_by_the_ranks_that_wrapped_models_average_over(monkeypatch):
    """Losses are sums over ranks: the mean of the ranks' gradients has to be the sum of what each rank's rows give."""
    free = replace(SETTINGS, clip_grad=0.0)
    alone = gradients([rows()], free)
    monkeypatch.setattr(distributed, "world_size", lambda: 3)
    of_three = gradients([rows()], free)
    same({name: 3 * gradient for name, gradient in alone.items()}, of_three, atol=1e-5)


def test_the_gradient_is_clipped_to_its_largest_norm_and_the_true_norm_is_returned():
    free = gradients([rows()], replace(SETTINGS, clip_grad=0.0))
    clipped = gradients([rows()], replace(SETTINGS, clip_grad=0.01))
    assert float(clipped.pop("norm")) == pytest.approx(float(free["norm"]), rel=1e-5)
    norm = math.sqrt(sum(float(g.square().sum()) for g in clipped.values()))
    assert norm == pytest.approx(0.01, rel=1e-3) and float(free["norm"]) > 0.02


def test_a_loss_that_is_not_finite_names_its_rows_and_changes_nothing():
    model = head_model()
    collate = Collator(None, ())
    model.llama.tok_embeddings.weight.data[59] = float("nan")
    bad = Sequence("the bad one", (5, 59, 7, 8), 2)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = make_optimizer(model, 0.1)
    good = [row for row in rows() if 59 not in row.ids]
    with pytest.raises(TrainingError, match=r"not finite for a batch with the bad one; no weight was changed .* --blr"):
        train_step(model, optimizer, [collate(good), collate([bad])], counts_of([*good, bad]), SETTINGS, Sums())
    after = dict(model.named_parameters())
    assert all(torch.equal(before[n].nan_to_num(), after[n].detach().nan_to_num()) for n in before) and not optimizer.state
    assert all(p.grad is None for p in model.parameters())


# --- evaluation ---


def test_the_standard_error_of_macro_f1_is_that_of_rows_drawn_anew():
    """Against scikit-learn on resampled rows; a share of right answers would have the binomial one, which is smaller."""
    draw = np.random.default_rng(7)
    gold = np.repeat(np.arange(4), [88, 4, 4, 4])
    many = [Sequence(f"row {i}", (5, 6, 7), 2, intent=int(intent)) for i, intent in enumerate(gold)]
    guesses = np.where(draw.random(100) < 0.7, gold, draw.integers(4, size=100))

    class Guessing(torch.nn.Module):
        def forward(self, batch):
            logits = torch.nn.functional.one_hot(torch.tensor([guesses[int(k.split()[1])] for k in batch.keys]), 4).float()
            zeros = torch.zeros(batch.tokens.shape)
            return Output(zeros, torch.ones_like(zeros, dtype=torch.bool), logits)

    scores, _ = evaluate(Guessing(), many, Collator(None, ()), CPU, 50)
    found = []
    for _ in range(400):
        rows = draw.integers(100, size=100)
        found.append(f1_score(gold[rows], guesses[rows], labels=np.unique(gold[rows]), average="macro", zero_division=0))
    f1 = scores["macro_f1"]
    assert scores["macro_f1_se"] == pytest.approx(np.std(found), rel=0.15)
    assert scores["macro_f1_se"] > 1.3 * math.sqrt(f1 * (1 - f1) / 100)


@pytest.mark.parametrize("batch_size", [1, 3, 8, 50])
def test_an_evaluation_drops_and_doubles_no_row(batch_size):
    model = head_model()
    alone, right, known = 0.0, [], 0
    with torch.no_grad():
        for row in rows():
            batch = Collator(None, ())([row])
            output = model(batch)
            alone -= float(output.logp.sum())
            if row.intent is not None:
                right.append(int(output.intent_logits.argmax()) == row.intent)
                known += 1
    scores, found = evaluate(model, rows(), Collator(None, ()), CPU, batch_size)
    assert scores["nll"] == pytest.approx(alone / counts_of(rows()).tokens, rel=1e-5)
    assert found == right and scores["accuracy"] == pytest.approx(sum(right) / known)
    assert 0 <= scores["macro_f1"] <= 1 and counts_of(rows()).intents == known == 7
