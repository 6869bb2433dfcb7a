"""Clips to ImageBind embeddings: one text, audio and vision vector a clip, in a store that training reads.

    python avt_get_emb.py --data_path data/demo/clips --output_dir runs/demo/emb --encoder imagebind_tiny
    torchrun --nproc_per_node 8 avt_get_emb.py --data_path MIntRec --output_dir runs/mintrec/emb --dtype bfloat16

Started again, an interrupted run continues. Clips that cannot be read are listed at the end and in failures.tsv.
"""

from imagebind_llm import distributed
from imagebind_llm.encoder.extraction import ExtractSettings, Summary, extract
from imagebind_llm.flags import exit_code, parse

LISTED = 10
KEPT = "nothing that was stored before is lost"


def main() -> int:
    settings = parse(ExtractSettings, description=__doc__)
    return exit_code(
        "avt_get_emb.py",
        lambda: run(settings),
        interrupted="interrupted; start again to continue",
        out_of_memory=f"{KEPT}: lower --batch_size and start again",
        after_os_error=f"{KEPT}: fix this and start again",
    )


def run(settings: ExtractSettings) -> int:
    """Embed, and report; the exit code."""
    summary = extract(settings)
    if summary.is_main:
        report(summary, settings.output_dir)
    return 1 if settings.strict and summary.failures else 0


def report(summary: Summary, output_dir: str) -> None:
    """What a person wants to know at the end of a run."""
    rate = f" ({summary.n_embedded / summary.seconds:.2f} clips/s)" if summary.n_embedded else ""
    now = f"{summary.n_embedded} embedded now in {summary.seconds:.1f} s{rate}"
    print(f"{summary.n_clips} clips in {output_dir}: {now}, {summary.n_done_before} were there already")
    print("present: " + ", ".join(f"{name} {count}" for name, count in summary.present.items()))
    if summary.n_cut_texts:
        print(f"texts longer than {summary.context_length} tokens, cut there: {summary.n_cut_texts}")
    if not summary.failures:
        return
    print(f"modalities that could not be read: {len(summary.failures)} (all in {output_dir}/failures.tsv)")
    by_clip: dict[tuple[str, str], list[str]] = {}
    for failure in summary.failures:
        by_clip.setdefault((failure.key, failure.reason), []).append(failure.modality)
    for (key, reason), modalities in list(by_clip.items())[:LISTED]:
        print(f"  {key} {' '.join(modalities)}: {reason}")
    if len(by_clip) > LISTED:
        print(f"  and {len(by_clip) - LISTED} more")


if __name__ == "__main__":
    distributed.leave(main)
