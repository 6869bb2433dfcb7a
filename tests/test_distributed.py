"""What ranks do together, on the one rank that a test has."""

import torch
import torch.distributed as dist

from imagebind_llm import distributed


def test_running_sums_on_the_cpu_are_added_up_by_ranks_on_gpus_too(monkeypatch):
    """nccl moves tensors on CUDA alone, as gloo does here when it is told to."""
    start = dist.init_process_group

    def without_a_gpu(backend, **more):
        start("cuda:gloo" if backend == "nccl" else backend.replace("cuda:nccl", "cuda:gloo"), **more)

    monkeypatch.setattr(dist, "init_process_group", without_a_gpu)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    for name, value in {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}.items():
        monkeypatch.setenv(name, value)
    with distributed.process_group("cuda") as device:
        assert device == torch.device("cuda:0")
        assert distributed.all_sum(torch.tensor([1.0, 2.0], dtype=torch.float64)).tolist() == [1, 2]
        assert distributed.gather_objects("told") == ["told"]
        distributed.barrier()
