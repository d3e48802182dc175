"""Rollouts by vLLM in the processes that train: the second `RolloutEngine`, for GPUs.

Every process holds a part of a vLLM engine beside its part of the model (`external_launcher`), whose tensor-parallel
groups are Megatron's; pipeline stages hold copies and share the prompts. Weights go over in memory before each
rollout, one parameter at a time and whole, under their Hugging Face names; vLLM takes its share. Between rollouts it
sleeps, which gives its memory back. Written against the documented interface of vLLM 0.11.0.

Deviations from `RolloutEngine`: noise depends on seed, key, sample and place, but it is vLLM's own, and rounding
follows its batches; top_p and top_k are refused.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from bielik_nemo import artifacts
from bielik_nemo.architecture import Architecture
from bielik_nemo.engine import convert, distributed
from bielik_nemo.engine.hf_reader import expected_shapes
from bielik_nemo.engine.hf_weights import hf_names, to_hf
from bielik_nemo.engine.rollout import Answer, Sampling, check_lengths
from bielik_nemo.engine.sampling import noise
from bielik_nemo.errors import ConfigError

if TYPE_CHECKING:
    from megatron.core.models.gpt import GPTModel

GPU_SHARE = 0.4  # of a GPU's memory, for weights and KV cache while vLLM is awake; our choice


class VLLMEngine:
    """A `RolloutEngine` that hands a Megatron model's weights to vLLM. Making one again costs nothing.

    Args:
        model: this rank's part, with context parallel size 1.
        vocab_size: true vocabulary size.
        tokenizer: directory with a tokenizer and a config.json of the model's family.
        batch_size: answers that are sampled side by side.

    Raises:
        ConfigError: vLLM is not installed.
    """

    def __init__(self, model: GPTModel, vocab_size: int, tokenizer: str, batch_size: int):
        family = artifacts.read_json(Path(tokenizer) / "config.json")["model_type"]
        self.model = model
        self.architecture = Architecture.from_gpt_config(
            model.config, vocab_size=vocab_size, max_position_embeddings=model.max_sequence_length, model_type=family
        )
        dtype = str(model.config.params_dtype).removeprefix("torch.")
        tp = model.config.tensor_model_parallel_size
        self.vllm = _started(tokenizer, self.architecture, dtype, tp, batch_size)

    @torch.no_grad()
    def generate(
        self, prompts: Sequence[Sequence[int]], keys: Sequence[int], samples: int, sampling: Sampling
    ) -> Iterator[tuple[int, list[Answer]]]:
        """Answers to prompts, when all are finished; see `RolloutEngine.generate`.

        Raises:
            ConfigError: top_p or top_k leaves words out: vLLM's log-probabilities are then those among the rest.
            DataError: see `check_lengths`.
        """
        from megatron.core import parallel_state

        if sampling.top_p < 1 or sampling.top_k:
            raise ConfigError(
                f"grpo.top_p={sampling.top_p}, grpo.top_k={sampling.top_k}: allowed with grpo.rollouts=vllm: 1 and 0"
            )
        check_lengths(prompts, sampling.max_tokens, self.model.max_sequence_length)
        stages = parallel_state.get_pipeline_model_parallel_world_size()
        own = range(len(prompts))[parallel_state.get_pipeline_model_parallel_rank() :: stages]
        asked = [(number, sample) for number in own for sample in range(samples)]
        self.vllm.wake_up()
        self.vllm.collective_rpc(lambda worker: worker.model_runner.model.load_weights(self._weights()))
        self.vllm.reset_prefix_cache()  # what it kept is of other weights
        outputs = self.vllm.generate(
            [{"prompt_token_ids": list(prompts[number])} for number, _ in asked],
            [_request(sampling, keys[number], sample) for number, sample in asked],
            use_tqdm=False,
        )
        self.vllm.sleep(level=1)
        answers = {pair: _answer(output.outputs[0]) for pair, output in zip(asked, outputs, strict=True)}
        parts: list[dict] = [answers] * stages
        if stages > 1:
            group = parallel_state.get_pipeline_model_parallel_group()
            torch.distributed.all_gather_object(parts, answers, group=group)
        answers = {pair: answer for part in parts for pair, answer in part.items()}
        for number in range(len(prompts)):
            yield number, [answers[number, sample] for sample in range(samples)]

    def _weights(self) -> Iterator[tuple[str, Tensor]]:
        return hf_tensors(self.model, self.architecture)


def hf_tensors(model: GPTModel, a: Architecture) -> Iterator[tuple[str, Tensor]]:
    """Every Hugging Face tensor of a spread model, whole and on every rank's device, one after another.

    All ranks must iterate. Collectives per parameter: a gather in the tensor-parallel group, and a broadcast of each
    tensor from its pipeline stage.
    """
    from megatron.core import parallel_state

    tp = parallel_state.get_tensor_model_parallel_world_size()
    stage, group = parallel_state.get_pipeline_model_parallel_rank(), parallel_state.get_pipeline_model_parallel_group()
    sources, shapes = torch.distributed.get_process_group_ranks(group), expected_shapes(a)
    mine = [
        (name, hf_names(name, layer), parameter)
        for name, layer, parameter in convert.parameters(model)
        if not (a.tie_embeddings and name == "output_layer.weight")
    ]
    stages: list = [None] * len(sources)
    torch.distributed.all_gather_object(stages, [names for _, names, _ in mine], group=group)
    for source, held in enumerate(stages):
        for position, names in enumerate(held):
            if source == stage:
                name, _, parameter = mine[position]
                shards = [torch.empty_like(parameter) for _ in range(tp)]
                torch.distributed.all_gather(
                    shards, parameter.contiguous(), group=parallel_state.get_tensor_model_parallel_group()
                )
                tensors = to_hf(name, shards, a)
            else:
                tensors = [next(model.parameters()).new_empty(shapes[name]) for name in names]
            for name, tensor in zip(names, tensors, strict=True):
                if len(sources) > 1:
                    torch.distributed.broadcast(tensor, src=sources[source], group=group)
                yield name, tensor


@functools.cache
def _started(tokenizer: str, a: Architecture, dtype: str, tp: int, batch_size: int) -> Any:
    """This process's part of a vLLM engine, asleep, its weights still to come; one for each shape."""
    try:
        import vllm
    except ImportError:
        raise ConfigError("grpo.rollouts: found vllm, which is not installed; allowed here: megatron") from None
    distributed.ensure_rendezvous()
    shape = {key: value for key, value in a.to_hf().items() if key not in ("architectures", "model_type")}
    shape["max_position_embeddings"] += 1  # vLLM counts the last token of an answer, which is not read
    started = vllm.LLM(
        model=tokenizer,
        hf_overrides=shape,
        load_format="dummy",
        dtype=dtype,
        max_model_len=a.max_position_embeddings + 1,
        max_num_seqs=batch_size,
        tensor_parallel_size=tp,
        distributed_executor_backend="external_launcher",
        gpu_memory_utilization=GPU_SHARE,
        enable_sleep_mode=True,
        enable_prefix_caching=True,  # a prompt is read once for all its samples
        logprobs_mode="processed_logprobs",  # of softmax(logits / temperature)
    )
    started.sleep(level=1)
    return started


def _request(sampling: Sampling, key: int, sample: int) -> Any:
    """What vLLM is asked for one answer."""
    import vllm

    return vllm.SamplingParams(
        temperature=sampling.temperature,
        max_tokens=sampling.max_tokens,
        stop_token_ids=list(sampling.stop_ids),
        stop=list(sampling.stop),
        ignore_eos=True,  # the tokens above end an answer, no others
        seed=int(noise(sampling.seed, key, sample, 1)[0] * 2**31),
        logprobs=0,  # of the token that was drawn
        detokenize=bool(sampling.stop),
    )


def _answer(found: Any) -> Answer:
    """What vLLM answered; its `finish_reason` is `length` where it was cut, else `stop`."""
    ids = list(found.token_ids)
    log_probs = [each[token].logprob for token, each in zip(ids, found.logprobs, strict=True)]
    return Answer(ids, log_probs, found.finish_reason == "stop")
