"""Train ITSL: intent and rationale together, from clips' embeddings, on any number of GPUs or on a laptop.

    torchrun --nproc_per_node 8 engine_finetune.py --model Llama7B_adapter --llama_model_path LLAMA \\
        --data_path alpaca_data.json --adapter_layer 30 --adapter_len 10 --max_seq_len 512 --batch_size 4 --epochs 5 \\
        --warmup_epochs 2 --blr 9e-3 --weight_decay 0.02 --output_dir ./checkpoint/
    torchrun --nproc_per_node 2 engine_finetune.py --data_path data/demo/clips --emb_path runs/demo/emb \\
        --output_dir runs/demo/itsl

An interrupted run continues when it is started again, and ends with the same weights. It trains on train only, chooses the best
epoch on dev only, and evaluates on test once, at the end.
"""

from collections.abc import Callable
from functools import partial

import torch

from imagebind_llm import distributed
from imagebind_llm.corpus.batches import Collator
from imagebind_llm.corpus.sequences import Corpus, load_corpus
from imagebind_llm.critic.self_critical import Critic
from imagebind_llm.critic.trust import weighed
from imagebind_llm.datasets.readers import DataError
from imagebind_llm.flags import exit_code, parse
from imagebind_llm.itsl.assembly import Assembled, build, open_language
from imagebind_llm.itsl.instructions import LEAD
from imagebind_llm.llama.tokenizers import LlamaTokenizer
from imagebind_llm.training.epoch import ExtraRows, evaluate, train_one_epoch
from imagebind_llm.training.log import say
from imagebind_llm.training.rehearsal import is_worth_it, rehearse
from imagebind_llm.training.results import finish
from imagebind_llm.training.run import Run
from imagebind_llm.training.schedule import make_optimizer
from imagebind_llm.training.settings import TrainSettings


def main() -> int:
    settings = parse(TrainSettings, description=__doc__)
    return exit_code(
        "engine_finetune.py",
        lambda: run(settings),
        interrupted="interrupted; start again to continue",
        out_of_memory="lower --batch_size and raise --accum_iter, or pass --checkpoint_activations: the run continues",
        after_os_error="fix this and start again: the run continues",
    )


def run(settings: TrainSettings) -> None:
    """Train, together with the other ranks of torchrun if there are any."""
    with distributed.process_group(distributed.choose_device(settings.device)) as device:
        train(settings, device)


def train(settings: TrainSettings, device: torch.device) -> None:
    llama, tokenizer = open_language(settings.llama_model_path, settings.model)
    corpus = load_corpus(settings.corpus, tokenizer, min(settings.max_seq_len, llama.max_seq_len))
    assembled = build(settings.build, corpus.taxonomy, corpus.store.identity.width if corpus.store else None, device)
    model = distributed.wrap(assembled.model)
    optimizer = make_optimizer(assembled.model, settings.weight_decay, settings.gate_lr)
    run = Run(settings, assembled, optimizer, corpus)
    announce(run, assembled, corpus)
    if settings.w_critic and run.verifier is None:
        raise DataError("--w_critic needs intents and reference rationales: pass --rationales, a JSONL of {key, rationale}")
    if settings.critic.judges and corpus.store is None:
        raise DataError(
            f"--credit {settings.credit} --trust_references {settings.trust_references}: the judge needs embeddings of the "
            f"clips: pass --emb_path, and not --modalities none"
        )
    rows = corpus.train_rows
    judges = run.judges(device)  # now, so that a judge that cannot be fitted is an error before the first step
    if judges and settings.trust_references == "no":
        lead = LEAD[settings.answer_order]
        rows = [weighed(row, judges[0], tokenizer, corpus.taxonomy, lead) if row.rationale else row for row in rows]
    with run.frozen_states(device) as states:
        collate = Collator(corpus.store, corpus.modalities, states)
        dev = corpus.splits.get("dev", [])
        evaluate_dev = partial(evaluate, assembled.model, dev, collate, device, 2 * settings.batch_size)
        if not run.progress.finished and is_worth_it(device):
            memory = rehearse(model, optimizer, rows, collate, settings, device, rehearsed_critic(run, tokenizer, device))
            say(f"the longest step fits into memory: {memory}")
        critic = None
        while not run.progress.finished:
            critic = critic or critic_of(run, tokenizer, evaluate_dev, device)
            extra = ExtraRows(corpus.caption_rows, corpus.head_rows if critic else [])
            for moment in train_one_epoch(model, optimizer, rows, collate, settings, device, run.position, critic, extra):
                run.end_step(moment)
            scores = {"train": run.position.sums.over_ranks().means() | run.position.critic.over_ranks().means()}
            scores["dev"], right = evaluate_dev()
            run.end_epoch(scores, right)
    finish(run, tokenizer, device)


def critic_of(
    run: Run, tokenizer: LlamaTokenizer, evaluate_dev: Callable[[], tuple[dict, list[bool]]], device: torch.device
) -> Critic | None:
    """The critic, once the self-critical loss is on; its reference is the model with which that began. Otherwise None."""
    if not run.progress.criticises or run.verifier is None or run.corpus.taxonomy is None:
        return None
    if run.progress.guard.began is None:
        run.begin_criticism(evaluate_dev)
    return make_critic(run, tokenizer, run.reference(), device)


def rehearsed_critic(run: Run, tokenizer: LlamaTokenizer, device: torch.device) -> Critic | None:
    """A critic for the test of memory, with the current weights as reference; None without --w_critic."""
    if not run.settings.w_critic:
        return None
    return make_critic(run, tokenizer, {name: p.detach().clone() for name, p in run.trained().items()}, device)


def make_critic(
    run: Run, tokenizer: LlamaTokenizer, reference: dict[str, torch.Tensor], device: torch.device
) -> Critic:
    """A critic with these reference tensors. Raises DataError if its answers do not fit the context."""
    assert run.verifier is not None and run.corpus.taxonomy is not None, "refused at the start"
    rows, start = run.corpus.splits["train"], run.progress.guard.began or 0
    judges = run.judges(device) or (None, None)
    critic = Critic(run.settings.critic, tokenizer, run.corpus.taxonomy, rows, run.verifier, reference, start, *judges)
    longest, context = max(row.n_prompt for row in rows) + critic.max_new, run.assembled.config.llama.max_seq_len
    if longest > context:
        raise DataError(
            f"--w_critic samples up to {critic.max_new} tokens, with the longest prompt {longest}; the context of this LLaMA "
            f"is {context}: shorten prompts and answers with --max_seq_len {context // 2}"
        )
    return critic


def announce(run: Run, assembled: Assembled, corpus: Corpus) -> None:
    """Print the number of trained parameters and of rows. Raises DataError if there are fewer rows than ranks."""
    trained = {name: p.numel() for name, p in assembled.model.named_parameters() if p.requires_grad}
    say(f"trained parameters: {sum(trained.values()):,} of {sum(p.numel() for p in assembled.model.parameters()):,}")
    raw = "raw, as in LLaMA-Adapter v1"
    say(f"prompts: {'scaled to unit RMS' if assembled.config.prompts.normalise_prefix else raw}")
    say("rows: " + ", ".join(f"{name} {len(rows)}" for name, rows in corpus.splits.items()))
    for note in corpus.notes:
        say(note)
    if corpus.n_cut:
        say(f"rows whose prompt was shortened to fit --max_seq_len {run.settings.max_seq_len}: {corpus.n_cut}")
    if corpus.caption_rows:
        say(f"captions mixed in: {len(corpus.caption_rows)}, one for every two rows")
    if run.settings.limit:
        say(f"trained on: {len(corpus.train_rows)} rows of train (--limit)")
    if len(corpus.train_rows) < distributed.world_size():
        raise DataError(f"{len(corpus.train_rows)} rows for {distributed.world_size()} ranks; lower --nproc_per_node")


if __name__ == "__main__":
    distributed.leave(main)
