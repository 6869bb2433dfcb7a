"""How head, decoder and verifier are mixed, by hand; and what dev chooses is what makes its gold intents likeliest."""

import pytest
import torch

from imagebind_llm.explain.calibration import ALPHAS, SHARES, TEMPERATURES, Calibration, calibrate, choose_alpha


def drawn(n: int = 40, classes: int = 3, sure: float = 1.0, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probabilities (N,C) that lean towards gold (N,) as far as `sure`."""
    generator = torch.Generator().manual_seed(seed)
    gold = torch.randint(classes, (n,), generator=torch.Generator().manual_seed(9))
    logits = torch.randn(n, classes, generator=generator) + sure * torch.nn.functional.one_hot(gold, classes)
    return logits.log_softmax(1), gold


def test_probabilities_are_the_weighted_mixture_at_the_temperature():
    head, decoder = torch.tensor([[0.7, 0.2, 0.1]]).log(), torch.tensor([[0.1, 0.5, 0.4]]).log()
    found = Calibration(share=0.75, temperature=2.0).probabilities(head, decoder)[0].tolist()
    scores = [h ** (0.75 / 2) * d ** (0.25 / 2) for h, d in ((0.7, 0.1), (0.2, 0.5), (0.1, 0.4))]
    assert found == pytest.approx([score / sum(scores) for score in scores], rel=1e-5)


def test_criticised_probabilities_are_weighed_by_the_reading_to_the_power_of_alpha():
    p, q = torch.tensor([[0.5, 0.3, 0.2]]), torch.tensor([[0.2, 0.8, 0.0]])
    found = Calibration(alpha=0.5).criticised(p, q)[0].tolist()
    scores = [a * b**0.5 for a, b in ((0.5, 0.2), (0.3, 0.8), (0.2, 1e-6))]
    assert found == pytest.approx([score / sum(scores) for score in scores], rel=1e-5)
    assert torch.equal(Calibration().criticised(p, q), p), "alpha 0 changes nothing"


def test_calibration_takes_the_share_and_temperature_that_make_gold_likeliest():
    (head, gold), (decoder, _) = drawn(sure=1.5), drawn(sure=0.5, seed=1)
    found = calibrate(head, decoder, gold)

    def likelihood(share: float, temperature: float) -> float:
        mixed = (share * head + (1 - share) * decoder) / temperature
        return float(mixed.log_softmax(1)[range(40), gold].mean())

    best = max(likelihood(share, temperature) for share in SHARES for temperature in TEMPERATURES)
    assert likelihood(found.share, found.temperature) == pytest.approx(best, abs=1e-6)
    assert found.share > 0.5 and found.alpha == 0


@pytest.mark.parametrize("sure", [0.0, 1.5])
def test_alpha_makes_gold_likeliest(sure):
    (p, gold), (q, _) = drawn(), drawn(sure=sure, seed=1)

    def likelihood(alpha: float) -> float:
        return float((p + alpha * q).log_softmax(1)[range(40), gold].mean())

    alpha = choose_alpha(p.exp(), q.exp(), gold)
    assert likelihood(alpha) == pytest.approx(max(map(likelihood, ALPHAS)), abs=1e-6)
    assert (alpha > 0.5) == (sure > 0), "a reading that says nothing counts little"
