"""The longest step tried before the first: it is as large as any, changes nothing, and says what to do if it does not fit."""

from pathlib import Path

import pytest
import torch
from toy_training import Done, call, interrupted, read_lines, write_intents, write_llama, write_store

import engine_finetune
from imagebind_llm.critic.self_critical import Critic
from imagebind_llm.training import rehearsal


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> dict[str, object]:
    """The flags of a run with the self-critical loss from its second epoch on."""
    root = tmp_path_factory.mktemp("world")
    data = {"data_path": write_intents(root / "MIntRec"), "emb_path": write_store(root / "emb")}
    shape = {"llama_model_path": write_llama(root / "LLAMA", 4), "adapter_layer": 2, "adapter_len": 3, "lora_rank": 2}
    pace = {"batch_size": 2, "accum_iter": 2, "warmup_epochs": 0, "lr": 0.02, "epochs": 2, "device": "cpu"}
    return data | shape | pace | {"trainable": "all", "w_critic": 1, "critic_start": 1, "samples": 2}


@pytest.fixture
def tried(monkeypatch) -> list[dict]:
    """Steps are tried on the CPU too; each is noted, with what it found and left."""
    found: list[dict] = []
    rehearse, sample = rehearsal.rehearse, Critic.sample

    def noting(model, optimizer, sequences, collate, settings, device, critic):
        def state() -> dict[str, torch.Tensor]:
            moments = {f"{i}.{n}": t for i, s in enumerate(optimizer.state.values()) for n, t in s.items()}
            return {n: p.detach().clone() for n, p in model.named_parameters()} | moments | {"random": torch.get_rng_state()}

        before = state()
        said = rehearse(model, optimizer, sequences, collate, settings, device, critic)
        changed = [name for name, tensor in state().items() if not torch.equal(before[name], tensor)]
        changed += [name for name, p in model.named_parameters() if p.grad is not None]
        found.append({"said": said, "changed": changed, "rows": sequences, "moments": len(optimizer.state)})
        return said

    def sampling(self, model, batch, generator):
        sampled = sample(self, model, batch, generator)
        if self.eos is None:
            lengths = (sampled.batch.targets != -100).sum(1).tolist()
            found.append({"prompts": batch.n_prompt.tolist(), "answers": lengths, "limit": self.max_new})
        return sampled

    monkeypatch.setattr(engine_finetune, "rehearse", noting)
    monkeypatch.setattr(engine_finetune, "is_worth_it", lambda device: True)
    monkeypatch.setattr(Critic, "sample", sampling)
    return found


def train(world: dict[str, object], out: Path, **flags: object) -> Done:
    return call(engine_finetune.main, **world | flags, output_dir=out)


def test_it_samples_to_the_limit_after_the_longest_prompts_and_changes_nothing(world, tried, tmp_path):
    done = train(world, tmp_path / "run", epochs=2)
    assert done.code == 0, done.err
    first, second, whole = tried
    longest = sorted(row.n_prompt for row in whole["rows"])[-2:]
    for one in (first, second):  # two passes of four: the second finds the gradients of the first
        assert one["prompts"] == longest and one["answers"] == [first["limit"]] * 4
    assert whole["changed"] == [] and whole["moments"] == 0
    assert f"fits into memory: 2 rows a pass, up to {max(len(r.ids) for r in whole['rows'])} tokens, 2 answers of" in done.out
    assert done.out.index("fits into memory") < done.out.index("epoch 0 ["), "before the first step"
    more = train(world, tmp_path / "run", epochs=2)
    assert more.code == 0 and len(tried) == 3, "a run that is over tries nothing"


def test_moments_that_are_there_are_left_alone_and_the_same_weights_come_out(world, tried, tmp_path, monkeypatch):
    flags = {"w_critic": 0, "critic_start": 0, "save_steps": 1}
    with interrupted(4):
        assert train(world, tmp_path / "tried", **flags).code == 2
    assert train(world, tmp_path / "tried", **flags).code == 0
    assert [one["moments"] > 0 for one in tried] == [False, True] and not any(one["changed"] for one in tried)
    monkeypatch.undo()
    assert train(world, tmp_path / "plain", **flags).code == 0 and len(tried) == 2, "a CPU's memory is not tried"
    logs = [read_lines(tmp_path / name / "log.txt") for name in ("tried", "plain")]
    assert logs[0] == logs[1]


def test_a_contrast_is_tried_with_all_rows_twice(world, tried, tmp_path, monkeypatch):
    passes, step = [], rehearsal.train_step

    def noting(model, optimizer, batches, *rest):
        passes.extend(batches)
        return step(model, optimizer, batches, *rest)

    monkeypatch.setattr(rehearsal, "train_step", noting)
    done = train(world, tmp_path, w_critic=0, critic_start=0, epochs=1, w_contrast=1)
    assert done.code == 0 and tried[0]["changed"] == [], done.err
    assert [batch.contrasted.tolist() for batch in passes] == [[0, 1], [0, 1]]


def test_memory_that_is_short_is_said_before_the_first_step(world, tried, tmp_path, monkeypatch):
    def short(*_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr(rehearsal, "train_step", short)
    done = train(world, tmp_path)
    advice = "lower --batch_size and raise --accum_iter, or pass --checkpoint_activations: the run continues"
    assert done.code == 2 and f"Tried to allocate 2.00 GiB; {advice}" in done.err
    assert "epoch 0 [" not in done.out and not (tmp_path / "last").exists()


def test_room_for_moments_is_kept_while_a_step_is_tried():
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    assert sum(t.numel() for t in rehearsal.StillOptimizer(optimizer).moments) == 2 * 8
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    before = [p.detach().clone() for p in model.parameters()]
    still = rehearsal.StillOptimizer(optimizer)
    still.step()
    assert still.moments == [] and all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
