"""The loss of a Hugging Face directory in vLLM, which tells the log-probability of every token of a prompt.

Written against the documented interface of vLLM 0.11.0.
"""

from __future__ import annotations

from pathlib import Path

from torch import Tensor


def loss(directory: Path, blocks: Tensor) -> float:
    """Mean cross-entropy in nats per token.

    Args:
        directory: of the model; its config.json says how it is quantised.
        blocks: token ids `[n, s + 1]`, each row a prompt of its own.
    """
    import vllm

    engine = vllm.LLM(
        model=str(directory),
        skip_tokenizer_init=True,
        max_model_len=blocks.shape[1] + 1,  # vLLM always answers with one token
        enable_prefix_caching=False,  # of a cached prefix it would tell nothing
    )
    request = vllm.SamplingParams(temperature=0, max_tokens=1, prompt_logprobs=0, detokenize=False)
    prompts = [{"prompt_token_ids": row} for row in blocks.tolist()]
    total = 0.0
    for prompt, output in zip(prompts, engine.generate(prompts, request, use_tqdm=False), strict=True):
        told = zip(prompt["prompt_token_ids"][1:], output.prompt_logprobs[1:], strict=True)  # of the first nothing
        total -= sum(words[token].logprob for token, words in told)
    return total / blocks[:, 1:].numel()
