"""A train split to rationales.jsonl, through any OpenAI-compatible chat endpoint; rationales are accepted by rules.

    python write_rationales.py --data_path MIntRec --output rationales.jsonl --model NAME --dry_run
    python write_rationales.py --data_path MIntRec --output rationales.jsonl --model NAME --base_url http://localhost:8000/v1

The key is read from OPENAI_API_KEY. Started again, an interrupted run continues and asks nothing twice. Rationales of the
test split (--splits test) are for scoring only: never train on them.
"""

import sys
from pathlib import Path

from imagebind_llm.files import write_atomic
from imagebind_llm.flags import exit_code, parse
from imagebind_llm.rationale_writing.client import RationaleSettings
from imagebind_llm.rationale_writing.review import review_page
from imagebind_llm.rationale_writing.writing import Summary, preview, write_rationales

LISTED = 10


def main() -> int:
    settings = parse(RationaleSettings, description=__doc__)
    return exit_code(
        "write_rationales.py",
        lambda: run(settings),
        interrupted=f"interrupted; every answer so far is kept beside {settings.output}: start again to continue",
        after_os_error="answers that were recorded before are kept: fix this and start again",
    )


def run(settings: RationaleSettings) -> None:
    """Ask, write and report; or say what would be asked."""
    if settings.dry_run:
        print(preview(settings))
        return
    summary = write_rationales(settings)
    page = Path(settings.output).with_suffix(".html")
    write_atomic(page, review_page(summary, f"Rationales of {settings.data_path}", settings.model).encode())
    report(summary, settings.output, page)


def report(summary: Summary, output: str, page: Path) -> None:
    """The acceptance table, what has no rationale, and where to look."""
    for name, count in summary.table():
        print(f"{count:6d}  {name}")
    if (rate := summary.agreement_rate) is not None:
        print(f"{100 * rate:5.1f}%  agree with a verifier that reads the label-masked rationale (cross-fitted)")
    spent = f"{summary.prompt_tokens:,} tokens sent, {summary.completion_tokens:,} received"
    print(f"{summary.n_asked} requests answered now: {spent}; {summary.n_without_intent} rows have no intent to explain")
    missing = [o for o in summary.outcomes if o.status != "accepted"]
    for outcome in missing[:LISTED]:
        print(f"  no rationale for {outcome.item.example.key}: {outcome.error or outcome.rows[-1]['reason']}")
    if len(missing) > LISTED:
        print(f"  and {len(missing) - LISTED} more, all on the review page")
    print(f"rationales: {output}   to look at: {page}")


if __name__ == "__main__":
    sys.exit(main())
