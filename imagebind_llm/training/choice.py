"""Choice of the best epoch on dev, and the guard that stops the self-critical loss."""

from dataclasses import dataclass, field

import torch

WINDOW = 20  # steps


@dataclass
class Guard:
    """Stops self-critical training after two strikes.

    An epoch gets a strike if dev accuracy is below the supervised model's by more than a paired standard error, and one if the
    truth of answers has risen by the rewarding judge but not by the watching judge. Without dev there are no strikes of the
    first kind. The field names are those of checkpoint.json.
    """

    began: int | None = None  # the first epoch with the self-critical loss; None: it has not begun
    right: list[bool] = field(default_factory=list)  # for each dev row, whether the supervised model's head was right
    strikes: int = 0
    paid: list[float] = field(default_factory=list)  # mean truth of answers in each of the last steps, by the rewarding judge
    watched: list[float] = field(default_factory=list)  # and by the watching judge

    @property
    def stops(self) -> bool:
        return self.strikes >= 2

    def passes(self, right: list[bool]) -> bool:
        """Compare a model with the supervised one on the same dev rows; adds a strike and returns False if it is worse."""
        if not right:
            return True
        change = torch.tensor(right, dtype=torch.float64) - torch.tensor(self.right, dtype=torch.float64)
        worse = bool(change.mean() < -change.std() / len(change) ** 0.5)
        self.strikes += worse
        return not worse

    def note(self, paid: float, watched: float) -> None:
        """Record the mean truth of a step's answers by both judges."""
        self.paid, self.watched = ([*old, new][-2 * WINDOW :] for old, new in ((self.paid, paid), (self.watched, watched)))

    def agrees(self) -> bool:
        """Compare the two judges; adds a strike and returns False if they disagree.

        They disagree if the rewarding judge's truth has risen from one window of steps to the next by more than two standard
        errors, and the watching judge's by less than one.
        """
        if len(self.paid) < 2 * WINDOW:
            return True
        (pay, pay_error), (watch, watch_error) = _rise(self.paid), _rise(self.watched)
        gamed = pay > 2 * pay_error and watch < watch_error
        self.strikes += gamed
        return not gamed


def _rise(values: list[float]) -> tuple[float, float]:
    """Mean of the last WINDOW values less the mean of the WINDOW values before them, and its standard error."""
    before, after = torch.tensor(values, dtype=torch.float64)[-2 * WINDOW :].split(WINDOW)
    return float(after.mean() - before.mean()), float(((before.var() + after.var()) / WINDOW).sqrt())


@dataclass
class Choice:
    """The best epoch by its dev scores.

    Of the epochs whose macro F1 is within a standard error of the highest, it is the one with the lowest negative
    log-likelihood (the one-standard-error rule of Breiman et al., 1984). Without intents the lowest negative log-likelihood
    decides; if answers are labels only, the highest macro F1. The standard error is that of the highest macro F1, by bootstrap
    over dev rows (epoch.evaluate).
    """

    peak: float = 0.0  # highest macro F1 so far
    peak_se: float = 0.0  # its standard error
    f1: float = 0.0  # macro F1 of the best epoch
    nll: float | None = None  # negative log-likelihood per answer token of the best epoch; None: there is none yet
    stale: int = 0  # epochs since the best one

    def offer(self, scores: dict[str, float], likelihood_decides: bool) -> bool:
        """Record an epoch's dev scores; returns whether it is the best so far. Without a dev split every epoch is.

        `likelihood_decides`: between epochs of similar macro F1; otherwise the higher macro F1 decides.
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
            threshold = f1 - f1_se if f1 > self.peak else self.peak - self.peak_se
            better = f1 >= threshold and (nll < self.nll or self.f1 < threshold)
        if f1 is not None and f1 > self.peak:
            self.peak, self.peak_se = f1, f1_se
        if better:
            self.f1, self.nll = f1 or 0.0, nll
        self.stale = 0 if better else self.stale + 1
        return better
