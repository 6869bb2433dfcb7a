"""A clip of the demo world with what was said of it, as HTML: it plays, and its claims are held against judge and truth.

Colour and sign are the judge's verdict, which any clip can have (imagebind_llm.explain.coloured_claims); the line under a
phrase is the truth, known of these clips alone: what each was drawn and voiced from.
"""

import html
from collections.abc import Callable, Mapping, Sequence

from imagebind_llm.critic.checked_claims import CheckedClaim
from imagebind_llm.demo_world.published import CUE_TABLE
from imagebind_llm.explain.coloured_claims import STYLE as JUDGED
from imagebind_llm.explain.coloured_claims import coloured
from imagebind_llm.explain.scoring import Rationale
from imagebind_llm.html import Html, data_url, text
from imagebind_llm.rationale_writing.pictures import frame_urls
from imagebind_llm.records import Example

POSTER = 240  # pixels, the longer side
STYLE = f"""<style>
.clips {{ display: grid; grid-template-columns: repeat(auto-fill, minmax(20rem, 1fr)); gap: 1rem }}
.clip {{ border: 1px solid #d9dee5; border-radius: .5rem; padding: .8rem; margin-bottom: 1rem; font-size: .92rem }}
.clip video {{ width: 100%; max-height: 15rem; background: #10151c; border-radius: .3rem }}
.clip p {{ margin: .4rem 0 }} .bar {{ display: grid; grid-template-columns: 7rem 1fr 3rem; gap: .5rem; align-items: center }}
.bar div {{ background: #e6eaef; border-radius: .2rem }} .bar div div {{ background: #3b6ea5; height: .7rem }}
.turned {{ display: grid; grid-template-columns: minmax(12rem, 1fr) 2fr 2fr; gap: 1rem }} .turned h4 {{ margin: 0 }}
@media (max-width: 50rem) {{ .turned {{ grid-template-columns: 1fr }} }}
u.true {{ text-decoration: underline solid #2d7a43 2px }} u.false {{ text-decoration: underline wavy #a3341f 1px }}
u {{ text-underline-offset: .2em }} small {{ color: #a3341f }}
figure {{ display: inline-block; width: min(34rem, 48%); margin-right: 1%; vertical-align: top }}
.wrong {{ color: #a3341f }} .right {{ color: #2d7a43 }}
{JUDGED}
</style>"""
TRUTH = Html(
    '<p>Underlined is what the clip was drawn and voiced from: <u class="true">true of the clip</u>, or <u class="false">false'
    "</u> <small>[with what is true]</small>. The judge does not know it.</p>"
)


def card(example: Example, answer: dict, known: Rationale) -> str:
    """One clip: it plays; what is said in it; intents with probabilities; the rationale, its claims marked."""
    said = [(answer["intent"], answer["probability"]), *answer["runners_up"]]
    bars_shown = "".join(
        f'<div class="bar"><span>{text(label)}</span><div><div style="width:{100 * p:.1f}%"></div></div>'
        f"<span>{p:.2f}</span></div>"
        for label, p in said
    )
    lines = [player(example), named(example, answer), bars_shown, f"<p>{marked(answer, known.cues or {})}</p>"]
    if not answer["consistent"]:
        lines.append(f'<p class="wrong">Careful: the rationale speaks for {text(answer["criticised"])}.</p>')
    return f'<div class="clip">{"".join(lines)}</div>'


def turned(example: Example, before: dict, after: dict, known: Rationale) -> str:
    """One clip and two answers about it, side by side."""
    answers = "".join(
        f"<div><h4>{title}</h4>{named(example, answer)}<p>{marked(answer, known.cues or {})}</p></div>"
        for title, answer in (("Before", before), ("After", after))
    )
    return f'<div class="clip turned"><div>{player(example)}</div>{answers}</div>'


def player(example: Example) -> str:
    """The clip and what is said in it."""
    assert example.clip is not None
    [poster] = frame_urls(example.clip, 1, POSTER)  # from the middle
    source = f'poster="{poster}" src="{data_url("video/mp4", example.clip.read_bytes())}"'
    return f'<video controls preload="none" {source}></video><p>“{text(example.text)}” <code>{text(example.key)}</code></p>'


def named(example: Example, answer: dict) -> str:
    """The intent that an answer names, and whether it is the clip's."""
    right = answer["intent"] == example.intent
    verdict = f'<span class="{"right" if right else "wrong"}">{"right" if right else f"labelled {text(example.intent)}"}</span>'
    return f"<p><b>{text(answer['intent'])}</b> {verdict}</p>"


def marked(answer: Mapping, truth: Mapping[str, str]) -> Html:
    """An answer's rationale: its claims coloured by the judge, where the answer has verdicts, and underlined by the truth."""
    rationale = answer["rationale"]
    checked: Sequence[CheckedClaim] = [CheckedClaim(**claim) for claim in answer.get("claims", [])]
    return coloured(rationale, checked, underlined(rationale, truth))


def underlined(rationale: str, truth: Mapping[str, str]) -> Callable[[int, int], str]:
    """Characters [start, end) of a rationale as HTML, in which every phrase about a cue is underlined as true or false."""
    phrases = CUE_TABLE.claims(rationale)

    def part(start: int, end: int) -> str:
        shown, at = "", start
        for first, last, cue, value in phrases:
            first, last = max(first, start), min(last, end)
            if first >= last:
                continue
            right = truth.get(cue) == value
            after = "" if right else f" <small>[{html.escape(truth.get(cue, 'not there'))}]</small>"
            shown += html.escape(rationale[at:first])
            shown += f'<u class="{str(right).lower()}">{html.escape(rationale[first:last])}</u>{after}'
            at = last
        return shown + html.escape(rationale[at:end])

    return part


