"""What does this person mean, and why? One clip, one row of a data set, or a whole split.

python explain.py --checkpoint runs/demo/itsl/best --clip data/demo/clips/raw_data/S03/E01/1.mp4 --text "what is said"
python explain.py --checkpoint runs/demo/itsl/best --data_path data/demo/clips --emb_path runs/demo/emb --key S03_E01_1
python explain.py --checkpoint runs/demo/itsl/best --data_path data/demo/clips --emb_path runs/demo/emb --batch answers.jsonl
"""

import sys
from pathlib import Path

from imagebind_llm import distributed, markdown
from imagebind_llm.critic.best_of import BestOf
from imagebind_llm.critic.checked_claims import ClaimCheck, has_judge
from imagebind_llm.critic.judge import JudgeError
from imagebind_llm.datasets.readers import DataError, load_dataset
from imagebind_llm.encoder.store import identity_of
from imagebind_llm.explain.answers import ExplainSettings, answer_split, embed_clip, open_store, scores_beside, shown
from imagebind_llm.explain.explainer import Explainer
from imagebind_llm.explain.loading import load_explainer
from imagebind_llm.explain.scoring import score_cells
from imagebind_llm.flags import exit_code, parse
from imagebind_llm.records import Example
from imagebind_llm.weight_files import WeightsError


def main() -> int:
    settings = parse(ExplainSettings, description=__doc__)
    return exit_code("explain.py", lambda: run(settings), interrupted="interrupted; the same command continues")


def run(settings: ExplainSettings) -> None:
    """Load, then explain one clip or all of a split."""
    device = distributed.choose_device(settings.device)
    explainer = load_explainer(Path(settings.checkpoint), settings.llama_model_path, device, settings.dtype)
    check = claim_check(explainer, settings)
    if settings.best_of:
        explainer.best_of = best_of(explainer, settings, check)
    if not settings.batch:
        explain_one(explainer, settings, check)
        return
    answer_split(explainer, settings, check)
    scores, judge = scores_beside(settings.data_path, [Path(settings.batch)], settings.split)
    parts = [part for part in (markdown.table(*score_cells(scores)) if scores else "", judge) if part]
    print("\n" + "\n\n".join(parts) if parts else "")


def best_of(explainer: Explainer, settings: ExplainSettings, check: ClaimCheck | None) -> BestOf:
    """What picks among the rationales, by the judge that checks claims. Raises DataError where there is nothing to judge by."""
    if check is None or explainer.order == "rationale":
        why = "knows the words alone" if check is None else "gives its reasons before its intent"
        raise DataError(f"--best_of {settings.best_of}: {settings.checkpoint} {why}; leave --best_of out")
    return BestOf(check.judge, check.clips, settings.best_of, settings.temperature)


def claim_check(explainer: Explainer, settings: ExplainSettings) -> ClaimCheck | None:
    """What checks claims; None, and that is said, where there is no judge. Raises JudgeError, DataError or WeightsError where
    --judge names one that cannot serve, or --best_of needs it; else the checkpoint's own need not, since embeddings can be had
    without the encoder."""
    if explainer.store_identity is None:
        if settings.judge:
            raise DataError(f"--judge {settings.judge}: {settings.checkpoint} knows the words alone; leave --judge out")
        return None
    needed = settings.judge or settings.best_of
    if not needed and not has_judge(Path(settings.checkpoint)):
        return None
    folder, identity = Path(settings.judge or settings.checkpoint), identity_of(explainer.store_identity)
    try:
        return ClaimCheck.load(folder, identity, explainer.taxonomy, settings.encoder_weights, explainer.device)
    except (WeightsError, JudgeError) as error:
        if needed:
            raise
        print(f"claims are not checked: {error}", file=sys.stderr)
        return None


def explain_one(explainer: Explainer, settings: ExplainSettings, check: ClaimCheck | None) -> None:
    """Explain one clip and print the answer."""
    if settings.data_path:
        examples = [e for e in load_dataset(settings.data_path).examples if e.key == settings.key]
        if not examples:
            raise DataError(f"{settings.data_path}: no clip with the key {settings.key}")
        store = open_store(explainer, settings)
        vectors, present = store.read([settings.key]) if store else (None, None)
    else:
        clip = Path(settings.clip) if settings.clip else None
        if clip and not clip.is_file():  # a mistyped name; answered by the words alone, it would look like an answer
            raise DataError(f"--clip {clip}: no such file; leave --clip out to explain the words alone")
        examples = [Example(settings.clip or "text", "all", clip, settings.text)]
        vectors, present = embed_clip(explainer, examples[0], settings)
    [explanation] = explainer.explain(examples, vectors, present, settings.max_new_tokens)
    claims = None
    if check and vectors is not None and present is not None:
        claims = check(explanation.rationale, vectors[0], present[0])
    print(shown(explanation, explainer.taxonomy.labels, examples[0], claims))


if __name__ == "__main__":
    sys.exit(main())
