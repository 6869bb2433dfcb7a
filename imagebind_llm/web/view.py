"""The pieces of the page as HTML: notes, the rationale with its check, what changes without a modality, frames and mel.

Pictures are inside the HTML (data URIs), so that none is ever a file on the server. Everything from a visitor or a model is
escaped by report.py.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence

from PIL import Image
from torch import Tensor

from imagebind_llm.clips.crops import SIDE, WINDOW_S, pixels
from imagebind_llm.clips.mel import MEL_MEAN, MEL_STD, N_FRAMES, bin_at
from imagebind_llm.critic.checked_claims import CheckedClaim, ClaimCheck
from imagebind_llm.explain.coloured_claims import LEGEND, OFF, coloured, judged_by, unchecked
from imagebind_llm.explain.cue_table import CueTable
from imagebind_llm.explain.explainer import Explainer, Explanation
from imagebind_llm.html import Html, figure, jpeg, paragraph, raster, table, text
from imagebind_llm.web.analysis import Inputs, PageModel, Seen

HERTZ = (250, 500, 1000, 2000, 4000)  # ticks of the mel picture
SECONDS_OF_PICTURE = N_FRAMES / 100  # 10 ms frames
STYLE = """
.itsl { font-size: 15px; line-height: 1.5 } .itsl h3 { margin: .2rem 0 .3rem; font-size: 1rem } .itsl p { margin: .3rem 0 }
.itsl .aside { opacity: .75; font-size: .88rem } .itsl .rationale { font-size: 1.08rem }
.itsl .note { border-left: 4px solid; border-radius: 4px; padding: .45rem .8rem; margin: .4rem 0 }
.itsl .refused { border-color: #c0392b; background: #c0392b1c } .itsl .doubt { border-color: #d08a1d; background: #d08a1d22 }
.itsl .fine { border-color: #3f8f5b; background: #3f8f5b1c } .itsl .open { border-color: #8a93a0; background: #8a93a01c }
.itsl .claim { display: inline-block; border: 1px solid; border-radius: 1em; padding: 0 .6em; margin: .15rem .3rem .15rem 0 }
.itsl .claim { font-size: .88rem } .itsl .true { border-color: #3f8f5b; background: #3f8f5b1c }
.itsl .false { border-color: #c0392b; background: #c0392b1c }
.itsl table, .itsl tr { border: 0 !important }
.itsl table { border-collapse: collapse; width: 100%; font-size: .9rem } .itsl .scroll { overflow-x: auto }
.itsl th, .itsl td { text-align: left; vertical-align: top; padding: .3rem .6rem; border: 0 solid #8a93a055 }
.itsl th, .itsl td { border-bottom-width: 1px } .itsl td.number { text-align: right; font-variant-numeric: tabular-nums }
.itsl .views { display: flex; flex-wrap: wrap; gap: .7rem } .itsl figcaption { opacity: .75; font-size: .82rem }
.itsl .views figure { margin: 0; width: 17rem; max-width: 100%; display: flex; flex-direction: column-reverse }
.itsl .views img { width: 100%; background: #fff; border-radius: 4px; display: block }
.itsl .pair { display: grid; grid-template-columns: 1fr 1fr; gap: 3px }
""".strip()


def html_block(*parts: str) -> Html:
    """Pieces of HTML as one that STYLE applies to."""
    return Html(f'<div class="itsl">{"".join(parts)}</div>')


def boxed(content: object, kind: str = "open") -> Html:
    """A coloured note: refused, doubt, fine or open."""
    return Html(f'<div class="note {kind}">{text(content)}</div>')


def notes_of(seen: Seen) -> Html:
    """What of the clip could not be used."""
    return html_block(*(boxed(sentence.capitalize() + ".", "doubt") for sentence in seen.notes))


# --- the answer -------------------------------------------------------------------------------------------------------------


def answer_block(seen: Seen, chosen: Sequence[str], model: PageModel) -> Html:
    """The rationale, its claims coloured by the judge; whether it argues for the intent; and, of a clip whose truth is known,
    which of its claims hold."""
    explanation, facts = seen.answers[tuple(chosen)], seen.truth
    checked = model.claims(seen, explanation.rationale)
    ending = "" if explanation.finished else " … (cut at the longest that is written)"
    why = f'<h3>Why</h3><p class="rationale">{coloured(explanation.rationale, checked)}{ending}</p>'
    parts: list[str] = [why, judge_block(seen, checked, model.check), consistency(explanation, model.explainer)]
    if facts is not None:
        if facts.intent is not None:
            right = facts.intent == explanation.intent
            parts.append(boxed(f"The data set labels this clip {facts.intent}.", "fine" if right else "doubt"))
        if facts.cues and facts.table:
            parts.append(claim_chips(explanation.rationale, facts.cues, facts.table, chosen))
    return html_block(*parts)


def judge_block(seen: Seen, claims: Sequence[CheckedClaim], check: ClaimCheck | None) -> Html:
    """Who coloured the claims, how far to trust it, and why some have no verdict; or that the judge is off."""
    if check is None:
        return boxed(OFF)
    judge = check.judge
    who = judged_by(judge.kind, judge.source, judge.modalities, judge.figures)
    doubts = [boxed(sentence, "doubt") for sentence in unchecked(claims, check.missing(seen.present[0].tolist()))]
    return Html("".join([LEGEND, *doubts, _aside(who)]))


def consistency(explanation: Explanation, explainer: Explainer) -> Html:
    """The consistency flag in words."""
    if explainer.verifier is None or explainer.calibration.alpha == 0:
        return boxed("Consistency is not checked: this checkpoint has no verifier that is worth asking.")
    if explanation.consistent:
        reading = f"a verifier that reads the rationale without its label words leaves the intent at {explanation.intent}"
        return boxed(f"Consistent: {reading}.", "fine")
    other = explainer.taxonomy.labels[int(explanation.criticised.argmax())]
    return boxed(f"Careful: the rationale speaks for {other} rather than {explanation.intent}.", "doubt")


def claim_chips(rationale: str, truth: Mapping[str, str], cues: CueTable, chosen: Sequence[str]) -> Html:
    """What the rationale says of this clip, held against the truth; what it says of a modality that is off is guessed."""
    chips = []
    for cue, value in cues.claims_in(rationale).items():
        holds = truth.get(cue) == value
        claim = f"{'words' if cue == 'family' else cue}: {value}" + ("" if cues.modality_of(cue) in chosen else " (guessed)")
        verdict = "✓" if holds else f"✗ it is {truth[cue]}" if cue in truth else "✗"
        chips.append(f'<span class="claim {"true" if holds else "false"}">{text(f"{claim} {verdict}")}</span>')
    intro = _aside("What the clip was drawn and voiced from says of its cues:")
    return Html(f"{intro}<p>{''.join(chips)}</p>" if chips else "<p>It names no cue of the demo world.</p>")


def changes_block(
    seen: Seen,
    chosen: Sequence[str],
    others: Mapping[str, Explanation],
    labels: Sequence[str],
    shown: Callable[[str], Html] = text,
) -> Html:
    """What changes when a modality is switched off: the intent, the probability of the intent above, the rationale as shown."""
    explanation = seen.answers[tuple(chosen)]
    index = labels.index(explanation.intent)
    p = 100 * float(explanation.probabilities[index])

    def row(name: str, other: Explanation) -> list[object]:
        now = 100 * float(other.probabilities[index])
        return [name, other.intent, now, now - p, shown(other.rationale)]

    rows = [[f"{_listed(chosen)} (above)", explanation.intent, p, None, "as above"]]
    if tuple(chosen) != seen.modalities and seen.modalities in seen.answers:
        rows.append(row(f"{_listed(seen.modalities)} (all)", seen.answers[seen.modalities]))
    rows += [row(f"without {name}", other) for name, other in others.items()]
    title = Html("<h3>What changes when a modality is switched off</h3>")
    if len(rows) == 1:
        return html_block(title, paragraph("Only one modality is left; there is none to switch off.", note=True))
    return html_block(title, table(["what is known", "intent", f"p({explanation.intent}), %", "change", "rationale"], rows))


def _listed(names: Sequence[str]) -> str:
    return " + ".join(names)


# --- what the encoder was given ---------------------------------------------------------------------------------------------


def inputs_block(inputs: Inputs) -> Html:
    """The frames that the model saw and the mel picture that it heard, as its towers got them; equal views once."""
    parts: list[str] = []
    if "vision" in inputs:
        windows, counts = inputs["vision"]
        shown = zip(pixels(windows.transpose(1, 2)), counts, strict=True)  # each (2,224,224,3)
        parts += ["<h3>What it saw</h3>", _views(_frames(pair, f"{n} of {sum(counts)} views") for pair, n in shown)]
        parts.append(_aside(f"Of each window of {WINDOW_S} s the first and the last frame, cut to squares of {SIDE} pixels."))
    if "audio" in inputs:
        windows, counts = inputs["audio"]
        heard = zip(windows[:, 0], counts, strict=True)
        parts += ["<h3>What it heard</h3>", _views(_mel(mel, f"{n} of {sum(counts)} windows") for mel, n in heard)]
        parts.append(
            _aside(f"Log-mel pictures of windows of {WINDOW_S} s; what a shorter clip lacks is filled with a constant.")
        )
    return html_block(*parts)


def _views(figures: Iterable[str]) -> str:
    return f'<div class="views">{"".join(figures)}</div>'


def _frames(pair: Tensor, caption: str) -> str:
    """The two frames of one crop side by side: pair (2,H,W,3)."""
    pictures = "".join(f'<img alt="a frame" src="{jpeg(Image.fromarray(frame.numpy()))}">' for frame in pair)
    return f'<figure><figcaption>{text(caption)}</figcaption><div class="pair">{pictures}</div></figure>'


def _mel(mel: Tensor, caption: str) -> str:
    """One mel picture (128,204), in natural logarithms of energy as before normalising."""
    ticks = {f"{hertz:g}": bin_at(hertz) + 0.5 for hertz in HERTZ}
    return figure(raster((mel * MEL_STD + MEL_MEAN).numpy(), SECONDS_OF_PICTURE, "seconds", "Hz", ticks), caption)


def _aside(content: str) -> str:
    return f'<p class="aside">{text(content)}</p>'
