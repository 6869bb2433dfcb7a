"""The review page: every clip's text, label, rationale and verdict, for a person to read; nothing in it can be changed."""

from imagebind_llm import html
from imagebind_llm.rationale_writing.writing import Outcome, Summary


def review_page(summary: Summary, title: str, model: str) -> str:
    """One HTML page: the acceptance table, then what was rejected, then what was accepted, in the data set's order."""
    header = ["clip", "utterance", "intent", "rationale", "verdict", "verifier reads"]
    groups = {
        "Rejected, or without an answer": [o for o in summary.outcomes if o.status != "accepted"],
        "Accepted": [o for o in summary.outcomes if o.status == "accepted"],
    }
    sections: list[tuple[str, list]] = [
        ("Acceptance", [html.table(["outcome", "number"], summary.table()), _agreement(summary)])
    ]
    sections += [
        (f"{name} ({len(some)})", [html.table(header, [_row(o, summary) for o in some]) if some else "None."])
        for name, some in groups.items()
    ]
    return html.page(title, sections, subtitle=f"Written by {model}; {len(summary.outcomes)} clips")


def _agreement(summary: Summary) -> str:
    rate = summary.agreement_rate
    if rate is None:
        return "Verifier agreement needs 50 accepted rationales or more."
    return (
        f"Verifier agreement: {100 * rate:.1f} % of {len(summary.agreement)} accepted rationales tell their intent with all "
        f"label words masked (read by verifiers fitted on the other four fifths)."
    )


def _row(outcome: Outcome, summary: Summary) -> list:
    example, last = outcome.item.example, outcome.rows[-1] if outcome.rows else {}
    answer = last.get("rationale", last.get("answer", "")).replace("\n", " ¶ ")  # a page would swallow line breaks
    verdict = outcome.error or last.get("reason") or f"accepted at asking {len(outcome.rows)}"
    read = summary.agreement.get(example.key)
    reading = "" if read is None else f"{read}" if read == outcome.item.intent else f"{read} ≠ {outcome.item.intent}"
    return [example.key, example.text, outcome.item.intent, answer, verdict, reading]
