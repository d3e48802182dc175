"""A Megatron model as lm-evaluation-harness sees one: log-likelihoods of continuations, and texts that it writes.

The numbers are those of the harness's own adapter for transformers (`HFLM`) on the export, whose ways are kept: the
tokenizer adds its special tokens unless the text begins with them, texts that are too long lose their beginning, and
answers end at a stop text, which is cut off. It differs where that one is inexact or slow: log-probabilities are in
float32 whatever the model's dtype, and texts that differ in their last token alone, such as the letters of a multiple
choice, are read once whatever their order.

All ranks of a tensor-parallel model ask and answer alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from jinja2 import TemplateError
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs, postprocess_generated_text
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from torch import Tensor

from bielik_nemo import ui
from bielik_nemo.engine import forward
from bielik_nemo.engine.megatron_rollout import MegatronEngine
from bielik_nemo.engine.rollout import Sampling
from bielik_nemo.errors import DataError

if TYPE_CHECKING:
    from megatron.core.models.gpt import GPTModel
    from transformers import PreTrainedTokenizerBase

KNOWN = {"do_sample", "temperature", "top_p", "top_k"}
"""What a task may say of how its answers are drawn, besides where they end."""

Encoded = tuple[Any, list[int], list[int]]
"""What is asked, and the tokens of context and continuation."""


class MegatronLM(TemplateLM):
    """An `lm_eval` model over this rank's part of a Megatron model, laid out on one pipeline stage.

    Args:
        model: in whatever mode; read where it is.
        tokenizer: its own.
        vocab_size: true vocabulary size; padding is neither scored nor drawn.
        max_length: tokens that it reads at a time.
        batch_size: texts that are read, or answers that are drawn, side by side.
        label: what the progress bar calls the work; may be changed between tasks.
    """

    def __init__(
        self,
        model: GPTModel,
        tokenizer: PreTrainedTokenizerBase,
        vocab_size: int,
        max_length: int,
        batch_size: int,
        label: str = "benchmarks",
    ):
        super().__init__()
        self.model, self.tokenizer, self.vocab_size = model, tokenizer, vocab_size
        self.max_length, self.batch_size, self.label = max_length, batch_size, label

    @property
    def eot_token_id(self) -> int:
        """Token that ends a text."""
        return self.tokenizer.eos_token_id

    @property
    def prefix_token_id(self) -> int:
        """Token that stands before a text without a context."""
        bos = self.tokenizer.bos_token_id
        return self.eot_token_id if bos is None else bos

    @property
    def tokenizer_name(self) -> str:
        """Name of the tokenizer, for caches of requests, which are not used here."""
        return str(self.tokenizer.name_or_path)

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """Token ids; None: with special tokens as the tokenizer has it, unless the text begins with the first."""
        if add_special_tokens is None:
            add_special_tokens = not string.startswith(self.tokenizer.decode(self.prefix_token_id))
        return self.tokenizer.encode(string, add_special_tokens=add_special_tokens)

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """The text of a conversation, without its system turn where the template knows none."""

        def render(turns: list[dict[str, str]]) -> str:
            return self.tokenizer.apply_chat_template(
                turns,
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=not add_generation_prompt,
            )

        try:
            return render(chat_history)
        except TemplateError:
            return render([turn for turn in chat_history if turn["role"] != "system"])

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """Log-likelihood of whole texts, in nats: every token once, with as much before it as fits."""
        windows = [
            [
                (None, *make_disjoint_window(window))
                for window in get_rolling_token_windows(
                    self.tok_encode(request.args[0]), self.prefix_token_id, self.max_length, context_len=1
                )
            ]
            for request in requests
        ]
        found = iter(self._loglikelihood_tokens([window for each in windows for window in each]))
        return [sum(next(found)[0] for _ in each) for each in windows]

    def _loglikelihood_tokens(self, requests: Sequence[Encoded], **_: Any) -> list[tuple[float, bool]]:
        """Of each: log-likelihood of the continuation in nats, and whether the model would have written it."""
        asked: dict[tuple[int, ...], list[int]] = {}  # what is read -> numbers of what is asked of it
        for number, (_, context, continuation) in enumerate(requests):
            if not 0 < len(continuation) <= self.max_length:
                raise DataError(
                    f"{self.label}: found a continuation of {len(continuation)} tokens, allowed: 1 to "
                    f"{self.max_length}, which the model reads at a time"
                )
            asked.setdefault(tuple((context + continuation)[-(self.max_length + 1) : -1]), []).append(number)
        texts = sorted(asked, key=len, reverse=True)
        answers: dict[int, tuple[float, bool]] = {}
        with ui.progress(self.label, len(requests)) as advance:
            for start in range(0, len(texts), self.batch_size):
                batch = texts[start : start + self.batch_size]
                wanted = [{number: requests[number][2] for number in asked[text]} for text in batch]
                for number, answer in self._read(batch, wanted):
                    answers[number] = answer
                    advance()
        return [answers[number] for number in range(len(requests))]

    def _read(
        self, texts: Sequence[Sequence[int]], wanted: Sequence[dict[int, list[int]]]
    ) -> list[tuple[int, tuple[float, bool]]]:
        """Answers for continuations that end one token behind each text, by number.

        Collectives: the logits behind tokens that are scored are gathered over the vocabulary's shards.
        """
        from megatron.core.tensor_parallel import gather_from_tensor_model_parallel_region

        longest = max(map(len, texts))
        tokens = torch.tensor([[*text, *[0] * (longest - len(text))] for text in texts])  # nothing looks at the pads
        counts = [max(map(len, each.values())) for each in wanted]
        rows = [row for row, count in enumerate(counts) for _ in range(count)]
        places = [
            place for text, count in zip(texts, counts, strict=True) for place in range(len(text) - count, len(text))
        ]

        def consume(logits: Tensor) -> list[tuple[int, tuple[float, bool]]]:
            scored = gather_from_tensor_model_parallel_region(logits[rows, places].contiguous())
            log_probs = scored[:, : self.vocab_size].float().log_softmax(-1)
            found = []
            for each, of_text in zip(log_probs.split(counts), wanted, strict=True):
                likeliest = each.argmax(-1)
                for number, continuation in of_text.items():
                    labels = torch.tensor(continuation, device=each.device)
                    own = each[-len(labels) :].gather(-1, labels.unsqueeze(-1))
                    greedy = bool((likeliest[-len(labels) :] == labels).all())
                    found.append((number, (own.double().sum().item(), greedy)))
            return found

        return forward.run(self.model, [tokens], consume)[0]

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Answers to prompts, up to their stop texts."""
        alike: dict[str, list[int]] = {}  # what is drawn in the same way
        for number, request in enumerate(requests):
            alike.setdefault(repr(request.args[1]), []).append(number)
        answers: dict[int, str] = {}
        with ui.progress(self.label, len(requests)) as advance:
            for numbers in alike.values():
                settings = normalize_gen_kwargs(requests[numbers[0]].args[1])
                stop = [text for text in handle_stop_sequences(settings.pop("until"), eos=None) if text]
                sampling = self._sampling(settings, stop)
                room = self.max_length - sampling.max_tokens
                prompts = [self.tok_encode(requests[number].args[0])[-room:] for number in numbers]
                engine = MegatronEngine(self.model, self.vocab_size, self.tokenizer.decode, self.batch_size)
                for place, (answer,) in engine.generate(prompts, numbers, 1, sampling):
                    text = self.tokenizer.decode(answer.ids, skip_special_tokens=True)
                    answers[numbers[place]] = postprocess_generated_text(text, stop, None)
                    advance()
        return [answers[number] for number in range(len(requests))]

    def _sampling(self, settings: dict[str, Any], stop: list[str]) -> Sampling:
        """How answers are drawn.

        Raises:
            DataError: a task asks for what this sampler cannot do, or for more tokens than the model reads.
        """
        most = settings.pop("max_gen_toks")
        if unknown := sorted(set(settings) - KNOWN):
            raise DataError(
                f"{self.label}: generation_kwargs: found {', '.join(unknown)}, allowed: until, "
                f"max_gen_toks, {', '.join(sorted(KNOWN))}"
            )
        if not 0 < most < self.max_length:
            raise DataError(f"{self.label}: max_gen_toks: found {most}, allowed: 1 to {self.max_length - 1}")
        return Sampling(
            most,
            (self.eot_token_id,),
            tuple(stop),
            temperature=settings["temperature"] if settings["do_sample"] else 0,
            top_p=settings.get("top_p", 1.0),
            top_k=settings.get("top_k", 0),
        )
