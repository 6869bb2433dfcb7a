"""The MLP equals a plain loop of its description; seeds do not touch each other; inputs are on one scale."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score
from torch import nn

from imagebind_llm.config import ProbeConfig
from imagebind_llm.intents.probe import Scaling, class_weights, fit_logistic, lr_factor, train_probes

N, D, C = 150, 24, 4


def drawn(seed=0, n=N):
    generator = torch.Generator().manual_seed(seed)
    classes = torch.randint(C, (n,), generator=generator)
    centres = torch.randn(C, D, generator=torch.Generator().manual_seed(9))
    return centres[classes] + 1.5 * torch.randn(n, D, generator=generator), classes


def plain_loop(inputs, classes, selection, config, seed):
    """The description, step by step: one seed, torch's own layers, optimiser, schedule and loss."""
    torch.manual_seed(seed)
    layers = [nn.Linear(D, config.hidden[0])]
    for wide, narrow in zip(config.hidden, (*config.hidden[1:], C), strict=True):
        layers += [nn.LeakyReLU(), nn.Linear(wide, narrow)]
    model = nn.Sequential(*layers)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, weight_decay=1e-5, fused=False)
    factor = lambda e: (e + 1) / 5 if e + 1 <= 5 else 0.95 ** (e + 1)  # noqa: E731
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    weight = None
    if config.class_weights:
        weight = N / (C * torch.bincount(classes).float())
    loss = nn.CrossEntropyLoss(weight, label_smoothing=0.1)
    order = torch.Generator().manual_seed(seed)
    best, kept = -1.0, None
    for epoch in range(config.epochs):
        rows = torch.randperm(len(inputs), generator=order)
        for start in range(0, len(rows), 64):
            own = rows[start : start + 64]
            optimizer.zero_grad()
            loss(model(inputs[own]), classes[own]).backward()
            optimizer.step()
        schedule.step()
        score = f1_score(selection[1], model(selection[0]).argmax(1), average="macro")
        if score > best:
            best, kept = score, (epoch + 1, {name: value.clone() for name, value in model.state_dict().items()})
    model.load_state_dict(kept[1])
    return kept[0], model


@pytest.mark.parametrize("config", [ProbeConfig(epochs=50), ProbeConfig((16, 8), epochs=20, class_weights=True)])
def test_all_seeds_at_once_give_what_a_plain_loop_of_each_gives(config):
    inputs, classes = drawn()
    selection, (asked, _) = drawn(1), drawn(2)
    probes = train_probes(inputs, classes, selection, C, config, seeds=(0, 3, 7))
    found = probes.probabilities(asked)
    for row, seed in enumerate((0, 3, 7)):
        epoch, model = plain_loop(inputs, classes, selection, config, seed)
        assert probes.epochs[row] == epoch
        with torch.no_grad():
            np.testing.assert_allclose(found[row], model(asked).softmax(1), rtol=0, atol=2e-4)


def test_a_seed_alone_gives_what_it_gives_among_others():
    inputs, classes = drawn()
    config = ProbeConfig(epochs=10)
    many = train_probes(inputs, classes, drawn(1), C, config, seeds=(5, 6)).probabilities(inputs)
    alone = train_probes(inputs, classes, drawn(1), C, config, seeds=(6,)).probabilities(inputs)
    np.testing.assert_allclose(many[1], alone[0], rtol=0, atol=1e-5)
    assert np.abs(many[0] - many[1]).max() > 1e-3


def test_training_twice_gives_the_same_bits_and_leaves_torchs_own_generator_alone():
    inputs, classes = drawn()
    torch.manual_seed(4)
    before = torch.get_rng_state()
    one, two = (train_probes(inputs, classes, None, C, ProbeConfig(epochs=3), seeds=(0, 1)) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), before)
    assert np.array_equal(one.probabilities(inputs), two.probabilities(inputs))


def test_without_selection_the_last_epoch_counts():
    inputs, classes = drawn()
    assert train_probes(inputs, classes, None, C, ProbeConfig(epochs=7), seeds=(0, 1)).epochs == [7, 7]


def test_every_epoch_ticks_once():
    inputs, classes = drawn()
    ticks = []
    train_probes(inputs, classes, None, C, ProbeConfig(epochs=4), seeds=(0,), tick=lambda: ticks.append(1))
    assert len(ticks) == 4


def test_the_learning_rate_rises_for_five_epochs_then_falls_to_0_735_and_by_5_percent_an_epoch():
    assert [lr_factor(epoch) for epoch in range(1, 6)] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert lr_factor(6) == pytest.approx(0.735092, abs=1e-6)  # 0.95^6, as the docstring says: not 0.95 of the peak
    assert [lr_factor(epoch + 1) / lr_factor(epoch) for epoch in range(6, 100)] == pytest.approx([0.95] * 94)


def test_class_weights_make_classes_count_alike():
    classes = torch.tensor([0] * 6 + [1] * 2)
    weights = class_weights(classes, 2, balanced=True)
    assert weights.tolist() == pytest.approx([8 / 12, 8 / 4]) and float(weights[classes].mean()) == pytest.approx(1)
    assert class_weights(classes, 2, balanced=False).tolist() == [1, 1]


# --- inputs


def test_scaled_inputs_have_one_size_whatever_the_public_scale():
    generator = torch.Generator().manual_seed(0)
    vectors = torch.randn(60, 2, 8, generator=generator) + 1
    vectors *= torch.tensor([14.3, 1.0])[:, None]
    present = torch.ones(60, 2, dtype=torch.bool)
    inputs = Scaling.of(vectors, present).apply(vectors, present)
    assert inputs.shape == (60, 16)
    torch.testing.assert_close(inputs.mean(0), torch.zeros(16), rtol=0, atol=1e-5)
    for own in (inputs[:, :8], inputs[:, 8:]):
        assert float(own.square().mean()) == pytest.approx(1, abs=1e-5)


def test_what_is_absent_is_zero_and_changes_nothing_else():
    generator = torch.Generator().manual_seed(0)
    vectors = torch.randn(20, 2, 8, generator=generator)
    present = torch.ones(20, 2, dtype=torch.bool)
    present[3:, 1] = False
    other = vectors.clone()
    other[~present] = 99.0
    scaling = Scaling.of(vectors, present)
    assert torch.equal(scaling.mean, Scaling.of(other, present).mean)
    inputs = scaling.apply(other, present)
    assert (inputs[3:, 8:] == 0).all() and torch.equal(inputs, scaling.apply(vectors, present))
    alone = Scaling.of(vectors[:3], present[:3])
    torch.testing.assert_close(scaling.mean[1], alone.mean[1])
    torch.testing.assert_close(scaling.factor[1], alone.factor[1])


def test_a_modality_that_is_never_there_is_no_trouble():
    vectors, present = torch.zeros(4, 1, 8), torch.zeros(4, 1, dtype=torch.bool)
    assert (Scaling.of(vectors, present).apply(vectors, present) == 0).all()


# --- logistic regression


def test_logistic_regression_is_chosen_on_the_selection_and_keeps_every_class():
    inputs, classes = drawn()
    x, y = drawn(1)
    classes = torch.where(classes == 2, 3, classes)  # class 2 is never trained on
    found = fit_logistic(inputs, classes, (x, y), C)(x)
    assert found.shape == (N, C) and (found[:, 2] == 0).all() and found.sum(1) == pytest.approx(1)
    scores = []
    for strength in (0.0003, 0.001, 0.003, 0.01, 0.03, 0.1):
        model = LogisticRegression(C=strength, max_iter=1000).fit(inputs, classes)
        scores.append(f1_score(y, model.predict(x), labels=range(C), average="macro"))
    assert f1_score(y, found.argmax(1), labels=range(C), average="macro") == pytest.approx(max(scores))
