"""Checked claims as a person reads them: coloured in the rationale, and who checked them, in words. For pages and reports.

No colour stands alone: behind each claim that was decided is a sign, and its tooltip has the verdict in words.
"""

import html
from collections.abc import Callable, Sequence

from imagebind_llm.config import SENSES
from imagebind_llm.critic.checked_claims import FAILS, HOLDS, OPEN, SIGNS, CheckedClaim
from imagebind_llm.critic.judge import FITTED, Figures
from imagebind_llm.html import Html

MEANINGS = {HOLDS: "holds of this clip", FAILS: "does not hold of this clip", OPEN: "no verdict"}
STYLE = """
mark.judged { color: inherit; border-radius: .2rem; padding: 0 .15rem }
mark.judged.true { background: #3f8f5b38 } mark.judged.false { background: #c0392b38 }
mark.judged.open { background: #8a93a022 }
mark.judged sup { font-weight: bold; line-height: 0; padding-left: .1em }
mark.judged.open sup { font-weight: normal; opacity: .7 }
""".strip()
LEGEND = Html(
    "<p>"
    + ", ".join(f'<mark class="judged {name}">{MEANINGS[name]}<sup>{SIGNS[name]}</sup></mark>' for name in SIGNS)
    + ", says the judge; a claim's tooltip has its probability.</p>"
)
OFF = (
    "The judge is off: no claim is checked against picture and sound, because this model comes without a judge. Training with "
    "engine_finetune.py --w_critic 8 --credit claim --captions FILE fits one; then type: python web_demo.py --checkpoint "
    "FOLDER --judge FOLDER_OF_THAT_TRAINING/best"
)


def coloured(rationale: str, claims: Sequence[CheckedClaim], inside: Callable[[int, int], str] | None = None) -> Html:
    """The rationale with every claim in the colour of its verdict, escaped. `inside(start, end)`: those characters as HTML, if
    they are to be more than escaped."""
    part = inside or (lambda start, end: html.escape(rationale[start:end]))
    shown, at = "", 0
    for claim in claims:
        verdict = f"{MEANINGS[claim.verdict]}, P {claim.p:.2f}"
        sign = f'<sup role="img" aria-label="{verdict}">{SIGNS[claim.verdict]}</sup>'
        mark = f'<mark class="judged {claim.verdict}" title="the judge: {verdict}">{part(claim.start, claim.end)}{sign}</mark>'
        shown += part(at, claim.start) + mark
        at = claim.end
    return Html(shown + part(at, len(rationale)))


def listed_senses(modalities: Sequence[str]) -> str:
    """picture and sound, say."""
    names = [sense for modality, sense in reversed(SENSES.items()) if modality in modalities]
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def judged_by(kind: str, source: str, modalities: Sequence[str], dev: Figures | None) -> str:
    """Who checked claims, against what, and how far to trust it; as judge.json has it."""
    who = f"fitted on {source} of train clips" if kind == FITTED else "of the encoder's own space"
    sentence = f"Checked against {listed_senses(modalities)} by a judge {who}"
    if dev is None:
        return f"{sentence}; how good it is was not measured."
    same = "" if dev.same_intent is None else f", from those of clips with the same intent with {dev.same_intent:.3f}"
    return (
        f"{sentence}. On dev it tells a clip's own claims from those of any other clip with an area under the curve (AUC) of "
        f"{dev.any_clip:.3f}{same}; 0.5 is guessing, 1 always right."
    )


def unchecked(claims: Sequence[CheckedClaim], missing: Sequence[str]) -> list[str]:
    """Why claims have no verdict, in sentences; none where all is well."""
    sentences = []
    if missing:
        senses = listed_senses(missing)
        sentences.append(f"Nothing is known of this clip's {senses}: claims that hang on it have no verdict.")
    if all(claim.verdict == OPEN for claim in claims):
        sentences.append("No claim of this rationale could be judged: the judge has learnt nothing like them, or is undecided.")
    return sentences
