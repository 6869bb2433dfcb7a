"""Which epoch of a run is kept, judged on dev alone, and when the self-critical loss is stopped."""

from dataclasses import dataclass, field

import torch

WINDOW = 20  # steps


@dataclass
class Guard:
    """Stops self-critical training when, at the end of two epochs, dev accuracy has fallen by more than a paired standard error
    below the supervised model's (`right`: where that one was right; without a dev split it never has), or the judge that pays
    has seen answers get truer and the one that watches has not.

    `began`: the epoch with which the self-critical loss began; None: it has not. `paid`, `watched`: the truth of the answers
    of each of the last steps, as the two judges see it."""

    began: int | None = None
    right: list[bool] = field(default_factory=list)
    strikes: int = 0
    paid: list[float] = field(default_factory=list)
    watched: list[float] = field(default_factory=list)

    @property
    def stops(self) -> bool:
        return self.strikes >= 2

    def passes(self, right: list[bool]) -> bool:
        """Compare with another model on the same rows; counts a strike if it is worse."""
        if not right:
            return True
        change = torch.tensor(right, dtype=torch.float64) - torch.tensor(self.right, dtype=torch.float64)
        worse = bool(change.mean() < -change.std() / len(change) ** 0.5)
        self.strikes += worse
        return not worse

    def note(self, paid: float, watched: float) -> None:
        """Remember a step."""
        self.paid, self.watched = ([*old, new][-2 * WINDOW :] for old, new in ((self.paid, paid), (self.watched, watched)))

    def agrees(self) -> bool:
        """Whether the watching judge bears out what the paying one has seen; counts a strike if it does not.

        It does not if pay has risen from one window of steps to the next by two standard errors, and watch by less than one."""
        if len(self.paid) < 2 * WINDOW:
            return True
        (pay, pay_error), (watch, watch_error) = _rise(self.paid), _rise(self.watched)
        gamed = pay > 2 * pay_error and watch < watch_error
        self.strikes += gamed
        return not gamed


def _rise(values: list[float]) -> tuple[float, float]:
    """By how much the mean of the last WINDOW values is above that of those before them, and its standard error."""
    before, after = torch.tensor(values, dtype=torch.float64)[-2 * WINDOW :].split(WINDOW)
    return float(after.mean() - before.mean()), float(((before.var() + after.var()) / WINDOW).sqrt())


@dataclass
class Choice:
    """Which epoch is the best, judged on dev alone: of those whose macro F1 is within a standard error of the highest, the one
    whose answers are likeliest (the one-standard-error rule of Breiman et al., 1984). Between epochs whose heads are equally
    good, the decoder decides. Without intents the likeliest answers win; where answers are labels alone, the
    highest macro F1.

    The standard error is the highest epoch's own, as in that rule: a plain bootstrap over dev rows (training.evaluate), not
    one of the difference between two epochs."""

    peak: float = 0.0  # the highest macro F1 so far
    peak_se: float = 0.0  # and its standard error
    f1: float = 0.0  # the best epoch's own
    nll: float | None = None  # and its negative log-likelihood an answer token; None: there is no best epoch yet
    stale: int = 0  # epochs since

    def offer(self, scores: dict[str, float], likelihood_decides: bool) -> bool:
        """Whether the epoch with these dev scores is the best so far. Without a dev split every one is.

        `likelihood_decides`: between epochs of like macro F1; else the higher macro F1 does.
        """
        if not scores:
            return True
        f1, f1_se, nll = scores.get("macro_f1"), scores.get("macro_f1_se", 0.0), scores["nll"]
        if self.nll is None:
            better = True
        elif f1 is None:
            better = nll < self.nll
        elif not likelihood_decides:
            better = f1 > self.f1
        else:
            near = f1 - f1_se if f1 > self.peak else self.peak - self.peak_se
            better = f1 >= near and (nll < self.nll or self.f1 < near)
        if f1 is not None and f1 > self.peak:
            self.peak, self.peak_se = f1, f1_se
        if better:
            self.f1, self.nll = f1 or 0.0, nll
        self.stale = 0 if better else self.stale + 1
        return better
