"""Time and memory of the distillation loss, forward and backward, against two other ways to compute it.

    python benchmarks/kd_loss.py

For bf16 and for fp32 logits of 2^26 numbers, 2088 tokens of 32128 words and 512 of 131072, at temperature 1,
on a GPU where there is one:
- bielik_nemo: `losses.forward_kl`, in chunks of tokens, the gradient written while the loss is computed;
- plain torch: `F.kl_div` of two fp32 `log_softmax`, through autograd;
- Model Optimizer: its `LogitsKLLoss`, where it can be imported (10 seconds).

Every round runs all of them once, one after the other in the same process, so that a change of the machine's load meets
them all; the first round is not counted. Seconds are CPU time (of all threads; on a GPU wall time), the median of the
rounds, with the least and the most. Ratios are bielik_nemo's to the other's, of time the median of the rounds' own.
Memory is the most that torch held at once in one more run beyond the logits, the student's gradient included: read from
the allocator on a GPU, and on a CPU from the profiler's record of all allocations.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from bielik_nemo.losses import forward_kl

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Sum over tokens of student and teacher logits `[s, b, v]` with a mask `[s, b]`."""


def ours(student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
    """The library's own."""
    return forward_kl(student, teacher, mask)[0]


def plain(student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
    """What one writes without thinking of memory."""
    log_q, log_p = student.float().log_softmax(-1), teacher.float().log_softmax(-1)
    return (F.kl_div(log_q, log_p, reduction="none", log_target=True).sum(-1) * mask).sum()


def losses() -> dict[str, Loss]:
    """All that can be run here, by name; ours first."""
    found = {"bielik_nemo": ours, "plain torch": plain}
    try:
        warnings.simplefilter("ignore")
        from modelopt.torch.distill.plugins.megatron import LogitsKLLoss
    except ImportError:
        return found
    criterion = LogitsKLLoss(SimpleNamespace(tensor_model_parallel_size=1, sequence_parallel=False))
    return found | {"Model Optimizer": lambda s, t, mask: (criterion(s, t)[0] * mask.transpose(0, 1)).sum()}


def seconds(step: Callable[[], object], device: str) -> float:
    """CPU time of one run, of all threads; on a GPU wall time."""
    clock = time.perf_counter if device == "cuda" else time.process_time
    start = clock()
    step()
    if device == "cuda":
        torch.cuda.synchronize()
    return clock() - start


def peak_bytes(step: Callable[[], object], device: str) -> int:
    """Most bytes that torch held at once during a run, beyond those held before."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        return torch.cuda.max_memory_allocated() - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        step()
    with tempfile.TemporaryDirectory() as directory:
        trace = Path(directory) / "trace.json"
        record.export_chrome_trace(str(trace))
        events = json.loads(trace.read_text())["traceEvents"]
    memory = [event["args"] for event in events if event["name"] == "[memory]"]
    return max(m["Total Allocated"] for m in memory) - (memory[0]["Total Allocated"] - memory[0]["Bytes"])


def machine(device: str) -> str:
    """One line about what the numbers were measured on."""
    if device == "cuda":
        return f"{torch.cuda.get_device_name()}, torch {torch.__version__}"
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    name = next((line.split(": ")[1] for line in lines if line.startswith("model name")), platform.machine())
    load = f"load average {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores"
    return f"{name}, {torch.get_num_threads()} thread(s), {load}, torch {torch.__version__}"


def compare(candidates: dict[str, Loss], dtype: torch.dtype, tokens: int, vocab: int, rounds: int, device: str) -> None:
    """Measure one shape and print a row of the table per loss."""
    torch.manual_seed(0)
    student, teacher = (torch.randn(tokens, 1, vocab, device=device).mul_(3).to(dtype) for _ in range(2))
    student.requires_grad_()
    mask = torch.ones(tokens, 1, device=device)

    def run(loss: Loss) -> float:
        student.grad = None
        total = loss(student, teacher, mask)
        (total / tokens).backward()
        return total.item()

    values = [run(loss) for loss in candidates.values()]  # the uncounted round
    if max(values) - min(values) > 1e-4 * max(values):
        raise SystemExit(f"the losses do not agree: {dict(zip(candidates, values, strict=True))}")
    times: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(rounds):
        for name, loss in candidates.items():
            times[name].append(seconds(lambda loss=loss: run(loss), device))
    student.grad = None
    peaks = {name: peak_bytes(lambda loss=loss: run(loss), device) for name, loss in candidates.items()}
    base, base_peak = times["bielik_nemo"], peaks["bielik_nemo"]
    for name, ts in times.items():
        ratio = statistics.median(b / t for t, b in zip(ts, base, strict=True))
        spread = f"{statistics.median(ts):.2f} ({min(ts):.2f} - {max(ts):.2f})"
        memory = f"{peaks[name] / 2**20:,.0f} MiB"
        print(f"| {vocab} x {tokens} | {str(dtype)[6:]} | {name} ", end="")
        print(f"| {spread} | {ratio:.2f} | {memory} | {base_peak / peaks[name]:.2f} |")


def main() -> None:
    """Read the options, print the table."""
    parser = argparse.ArgumentParser(description="Compare time and memory of distillation losses.")
    parser.add_argument("--vocab", type=int, nargs="+", default=[32128, 131072])
    parser.add_argument("--numbers", type=int, default=2**26, help="logits of one model: tokens times vocabulary")
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # else the profiler writes between the rows
    device = "cuda" if torch.cuda.is_available() else "cpu"
    candidates = losses()
    print(f"{args.rounds} rounds; {machine(device)}\n")
    print("| words x tokens | logits | loss | seconds | ours / theirs | peak memory | ours / theirs |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for vocab in args.vocab:
        for dtype in (torch.bfloat16, torch.float32):
            compare(candidates, dtype, args.numbers // vocab, vocab, args.rounds, device)


if __name__ == "__main__":
    main()
