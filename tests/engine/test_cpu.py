"""The CPU backend redirects what asks for CUDA, changes nothing else, and nothing at all where CUDA exists."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap

import pytest
import torch
from torch.overrides import _len_torch_function_stack

from bielik_nemo.engine import cpu, distributed

without_cuda = pytest.mark.skipif(torch.cuda.is_available(), reason="the backend is off where CUDA exists")


def fresh(code: str) -> str:
    """What a new interpreter prints; this one has been redirected by other tests."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        env=os.environ | {"CUDA_VISIBLE_DEVICES": ""},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.strip()


def test_does_nothing_where_cuda_exists():
    """Every name that `enable` replaces is still torch's own, and no function mode is in force."""
    assert (
        fresh("""
        import os, torch
        from torch.overrides import _len_torch_function_stack
        os.environ.pop("TORCHDYNAMO_DISABLE", None)
        torch.cuda.is_available = lambda: True
        places = [torch.cuda, torch.cuda.random, torch.cuda.nvtx, torch.Tensor, torch.nn.Module, torch.distributed]
        before = [dict(vars(place)) for place in places]
        from bielik_nemo.engine import cpu
        assert cpu.enable() is False
        assert cpu.enable() is False
        for place, names in zip(places, before):
            assert all(vars(place)[name] is value for name, value in names.items()), place
        assert _len_torch_function_stack() == 0
        assert "TORCHDYNAMO_DISABLE" not in os.environ
        print("untouched")
    """)
        == "untouched"
    )


@without_cuda
def test_nothing_is_redirected_where_nobody_looks():
    """And everything again afterwards."""
    cpu.enable()
    with cpu.unwatched(), pytest.raises((RuntimeError, AssertionError)):
        torch.empty(1, device="cuda")
    assert torch.empty(1, device="cuda").device.type == "cpu"


def test_torch_refuses_each_request_without_it_and_grants_it_with_it():
    """The list of cpu.py, entry by entry; one that torch grants by itself is no longer needed."""
    requests = {
        "current_device": "torch.cuda.current_device() == 0",
        "set_device": "torch.cuda.set_device(0) is None",
        "synchronize": "torch.cuda.synchronize() is None",
        "is_initialized": "torch.cuda.is_initialized()",
        "stream": "torch.cuda.Stream() is not None",
        "current_stream": "torch.cuda.current_stream() is not None",
        "event": "torch.cuda.Event(enable_timing=True).record() is None",
        "get_rng_state": "torch.equal(torch.cuda.get_rng_state(), torch.get_rng_state())",
        "default_generators": "torch.cuda.default_generators[0] is torch.default_generator",
        "capability": "torch.cuda.get_device_capability() == (0, 0)",
        "nvtx": "torch.cuda.nvtx.range_push('a') is None",
        "tensor.cuda": "torch.ones(2).cuda().device.type == 'cpu'",
        "module.cuda": "next(torch.nn.Linear(2, 2).cuda().parameters()).device.type == 'cpu'",
        "factory": "torch.zeros(2, device='cuda').device.type == 'cpu'",
        "index": "torch.zeros(2, device=0).device.type == 'cpu'",
        "to": "torch.zeros(2).to('cuda:0').device.type == 'cpu'",
        "module.to": "next(torch.nn.Linear(2, 2).to(0).parameters()).device.type == 'cpu'",
        "pin_memory": "torch.zeros(2, pin_memory=True).sum() == 0",
        "type": "torch.zeros(2).type() == 'torch.cuda.FloatTensor'",
    }
    found = fresh(f"""
        import torch
        from bielik_nemo.engine import cpu
        requests = {requests!r}
        def works(code):
            try:
                return bool(eval(code))
            except Exception:
                return False
        before = {{name for name, code in requests.items() if works(code)}}
        assert cpu.enable() is True
        after = {{name for name, code in requests.items() if works(code)}}
        print(sorted(before), sorted(set(requests) - after))
    """)
    assert found == "[] []"


def test_the_state_of_the_cpu_generator_is_untouched_by_enabling():
    found = fresh("""
        import torch
        torch.manual_seed(7)
        before = torch.get_rng_state()
        from bielik_nemo.engine import cpu
        cpu.enable()
        assert torch.equal(before, torch.get_rng_state())
        torch.cuda.manual_seed(3)
        first = torch.rand(2)
        torch.manual_seed(3)
        print(torch.equal(first, torch.rand(2)))
    """)
    assert found == "True"


@without_cuda
def test_enabling_twice_is_enabling_once():
    assert cpu.enable() is True
    depth, to_type = _len_torch_function_stack(), torch.Tensor.type
    assert cpu.enable() is True
    assert _len_torch_function_stack() == depth
    assert torch.Tensor.type is to_type


@without_cuda
@pytest.mark.parametrize(
    "make",
    [
        lambda: torch.empty(2, device="cuda"),
        lambda: torch.ones(2, device=torch.device("cuda", 1)),
        lambda: torch.tensor([1.0], device="cuda:0"),
        lambda: torch.arange(3, device=torch.device("cuda")),
        lambda: torch.randn(2, device=0),
        lambda: torch.zeros(2).new_zeros(3, device="cuda"),
        lambda: torch.zeros_like(torch.ones(2), device="cuda"),
        lambda: torch.zeros(2).to("cuda"),
        lambda: torch.zeros(2).to(torch.device("cuda:0"), torch.float64),
        lambda: torch.zeros(2).to(device="cuda", dtype=torch.float64),
        lambda: torch.zeros(2).cuda(non_blocking=True),
        lambda: torch.empty(2, pin_memory=True),
        lambda: torch.nn.Linear(2, 2, device="cuda").weight,
        lambda: torch.nn.Linear(2, 2).cuda(0).weight,
        lambda: torch.nn.Linear(2, 2).to("cuda", torch.float64).weight,
    ],
)
def test_cuda_requests_land_on_the_cpu(make):
    cpu.enable()
    assert make().device == torch.device("cpu")


@without_cuda
def test_dtypes_and_shapes_are_as_asked():
    """Only the device is rewritten: numbers that are sizes, and dtypes beside a device, stay."""
    cpu.enable()
    assert torch.zeros(2).to("cuda", torch.float64).dtype == torch.float64
    assert torch.zeros(2).to(torch.int64).dtype == torch.int64
    assert torch.zeros(2).new_zeros(3).shape == (3,)
    assert torch.zeros(3, 4, device="meta").device.type == "meta"
    assert torch.zeros(2).to("meta").device.type == "meta"


@without_cuda
def test_tensor_type_names_cuda_only_when_asked_for_the_name():
    """Megatron's clip_grad_norm compares the name with 'torch.cuda.FloatTensor'; `.type(dtype)` converts as ever."""
    cpu.enable()
    assert torch.zeros(1).type() == "torch.cuda.FloatTensor"
    assert torch.zeros(1, dtype=torch.bfloat16).type() == "torch.cuda.BFloat16Tensor"
    assert torch.zeros(1).type(torch.float64).dtype == torch.float64
    assert torch.zeros(1).type("torch.LongTensor").dtype == torch.int64


@without_cuda
def test_scalars_can_be_gathered():
    """gloo refuses 0-d inputs, NCCL does not; Model Optimizer gathers the number of layers left on each stage."""
    with distributed.model_parallel():
        gathered = torch.zeros(1)
        torch.distributed.all_gather_into_tensor(gathered, torch.tensor(5.0))
        assert gathered.tolist() == [5.0]
        pair = torch.zeros(2)
        torch.distributed.all_gather_into_tensor(pair, torch.tensor([1.0, 2.0]))
        assert pair.tolist() == [1.0, 2.0]


def test_gloo_still_refuses_scalars():
    """Why `all_gather_into_tensor` is wrapped; when this fails, the wrapper can go."""
    found = fresh("""
        import os, torch
        os.environ |= dict(RANK="0", WORLD_SIZE="1")
        store = torch.distributed.HashStore()
        torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
        try:
            torch.distributed.all_gather_into_tensor(torch.zeros(1), torch.tensor(5.0))
            print("gathered")
        except Exception as error:
            print("refused")
    """)
    assert found == "refused"


def test_megatron_still_compares_type_names():
    """Why `Tensor.type` is wrapped; when this fails, the wrapper can go."""
    import inspect

    cpu.enable()
    from megatron.core.optimizer import clip_grads

    assert "'torch.cuda.FloatTensor'" in inspect.getsource(clip_grads)


@without_cuda
def test_named_random_states_mean_what_they_say():
    """Megatron's tracker forks the redirected state: a named stream goes on where it stopped, outside is unmoved."""
    cpu.enable()
    from megatron.core.tensor_parallel.random import CudaRNGStatesTracker

    tracker = CudaRNGStatesTracker()
    tracker.add("a", 11)
    torch.manual_seed(11)
    expected = torch.rand(4)
    torch.manual_seed(5)
    outside = torch.get_rng_state()
    drawn = []
    for _ in range(2):
        with tracker.fork("a"):
            drawn.append(torch.rand(2))
    assert torch.equal(torch.cat(drawn), expected)
    assert torch.equal(torch.get_rng_state(), outside)
