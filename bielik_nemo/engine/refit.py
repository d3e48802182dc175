"""Compensation: the weights that stay after a cut are refitted so that the hidden stream changes least.

Two streams run side by side through the layers, the source's t and the cut model's s, both from the same tokens. In
each kept layer, first the attention's output projection and then the FFN's down projection are refitted by least
squares (prune/least_squares.py) to what the source's stream is after that part, seen in the cut model's channels:

    R_attention = P t_after_attention - s_after_attention,   R_ffn = P t_after_layer - s_after_layer

each token divided by the root mean square of its target, as the next norm will do, so that tokens with massive
activations do not decide alone. X are the projection's own inputs in the cut model as it has become up to here, so that
a layer also makes up for what the layers before it could not.

`blocks`: the reference runs through dropped layers too, and the down projection of the layer before a gap is fitted to
the stream behind it. ReplaceMe (arXiv 2505.02819) puts a d x d map there; the refit contains it, since any such map of
the FFN's output is a change of its down projection. Without `blocks` the reference leaves dropped layers out.

Layers that are dropped before the first kept one have none before them: only `attention` and `ffn` of the next make up
for them. A gap must not reach over a pipeline boundary (stages/prune.py refuses it). One pass costs three forward
passes of the layers.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from bielik_nemo import ui
from bielik_nemo.errors import GateError
from bielik_nemo.prune.least_squares import NormalEquations

if TYPE_CHECKING:
    from megatron.core.models.gpt import GPTModel
    from megatron.core.transformer.transformer_layer import TransformerLayer


@dataclass(frozen=True)
class Parts:
    """What is refitted."""

    attention: bool
    ffn: bool
    blocks: bool


class _Stop(Exception):
    """Ends a layer's forward pass before its FFN."""


@contextlib.contextmanager
def _inputs_of(module: torch.nn.Module, seen: list[Tensor], stop: bool = False) -> Iterator[None]:
    """Append what `module` is called with to `seen`."""

    def hook(_, args: tuple[Tensor, ...]) -> None:
        seen.append(args[0])
        if stop:
            raise _Stop

    handle = module.register_forward_pre_hook(hook)
    try:
        yield
    finally:
        handle.remove()


class _Runner:
    """Calls the decoder layers of one model as its own forward pass does."""

    def __init__(self, model: GPTModel):
        self.model = model

    def embed(self, tokens: Tensor) -> Tensor:
        """Hidden stream `[s, b, d]` of token ids `[b, s]`."""
        positions = torch.arange(tokens.shape[1], device=tokens.device).expand_as(tokens)
        return self.model.embedding(input_ids=tokens, position_ids=positions)

    def __call__(self, layer: TransformerLayer, hidden: Tensor) -> Tensor:
        rotary = self.model.rotary_pos_emb(hidden.shape[0])
        if isinstance(rotary, tuple):
            rotary = rotary[0]
        return layer(hidden_states=hidden, attention_mask=None, rotary_pos_emb=rotary)[0]

    def reference(self, layer: TransformerLayer, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """The stream after the attention and after the layer."""
        seen: list[Tensor] = []
        with _inputs_of(layer.pre_mlp_layernorm, seen):
            out = self(layer, hidden)
        return seen[0], out

    def attention(self, layer: TransformerLayer, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Input of the output projection, and the stream after the attention."""
        x: list[Tensor] = []
        after: list[Tensor] = []
        with _inputs_of(layer.self_attention.linear_proj, x), _inputs_of(layer.pre_mlp_layernorm, after, stop=True):
            with contextlib.suppress(_Stop):
                self(layer, hidden)
        return x[0], after[0]

    def ffn(self, layer: TransformerLayer, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Input of the down projection, and the stream after the layer."""
        x: list[Tensor] = []
        with _inputs_of(layer.mlp.linear_fc2, x):
            out = self(layer, hidden)
        return x[0], out


def _fit(
    name: str, weight: Tensor, seen: list[tuple[Tensor, Tensor]], targets: Iterable[Tensor], ridge: float
) -> tuple[Tensor, dict[str, float]]:
    """Change a projection's weight `[d, f]` in place so that the stream behind it comes near its targets.

    Args:
        name: of the projection, for errors.
        weight: of the projection.
        seen: for each batch, its inputs `[s, b, f]` and the stream behind it `[s, b, d]`.
        targets: `[s, b, d]` of each batch.
        ridge: see least_squares.py.

    Returns:
        The change, and the squared error per value before and after, relative to the target's mean square.

    Raises:
        GateError: what goes in or should come out is zero or not finite.
    """
    equations = NormalEquations(weight.shape[1], weight.shape[0], weight.device)
    for (x, stream), target in zip(seen, targets, strict=True):
        target = target.float()
        scale = (target.square().mean(dim=-1, keepdim=True) + 1e-12).rsqrt()
        equations.add(x.float() * scale, (target - stream.float()) * scale)
    try:
        change = equations.solve(ridge)
    except ValueError as error:
        raise GateError(f"prune.compensation: layer {name}: {error}") from None
    values = equations.rows * weight.shape[0]
    errors = {"before": equations.squared_error.item() / values, "after": equations.error_after(change) / values}
    weight += change.to(weight.dtype)
    return change.to(weight.dtype), errors


def _groups(layers: list[TransformerLayer], kept: list[int]) -> list[tuple[list, TransformerLayer | None]]:
    """This stage's source layers as `(dropped ones, the kept one before them)`; None: they come before any kept one."""
    groups: list[tuple[list, TransformerLayer | None]] = [([], None)]
    for layer in layers:
        if layer.layer_number - 1 in kept:
            groups.append(([], layer))
        else:
            groups[-1][0].append(layer)
    return groups


@torch.no_grad()
def refit(
    source: GPTModel,
    student: GPTModel,
    kept: list[int],
    batches: list[Tensor],
    project: Callable[[Tensor], Tensor],
    parts: Parts,
    ridge: float,
) -> dict[str, dict[str, float]]:
    """Refit a cut model's projections in place, layer after layer.

    Args:
        source: this rank's part of the whole model; tensor parallel size 1.
        student: this rank's part of the cut one, whose layers are the source's layers `kept` on the same stages.
        kept: 0-based source layers, in order.
        batches: token ids `[b, s]`.
        project: the source's hidden stream `[s, b, d]` in the cut model's channels.
        parts: what is refitted.
        ridge: see least_squares.py.

    Returns:
        Relative squared errors before and after each refit of this stage, by `<source layer>.<attention|ffn>`.
    """
    run_source, run_student = _Runner(source.eval()), _Runner(student.eval())
    device = next(student.parameters()).device
    streams = _receive(source, student, batches, device)
    if streams is None:
        tokens = [batch.to(device) for batch in batches]
        streams = [run_source.embed(each) for each in tokens], [run_student.embed(each) for each in tokens]
    reference, stream = streams
    groups = _groups(list(source.decoder.layers), kept)
    own = iter(student.decoder.layers)
    found: dict[str, dict[str, float]] = {}
    with ui.progress("refitting", len(groups)) as advance:
        for dropped, layer in groups:
            if layer is None:
                targets = reference
            else:
                after_attention, targets = zip(*(run_source.reference(layer, t) for t in reference), strict=True)
            for each in dropped if parts.blocks else ():
                targets = [run_source(each, t) for t in targets]
            reference = list(targets)
            if layer is not None:
                mine, index = next(own), layer.layer_number - 1
                if parts.attention:
                    seen = [run_student.attention(mine, s) for s in stream]
                    projection = mine.self_attention.linear_proj.weight
                    _, found[f"{index}.attention"] = _fit(
                        f"{index}.attention", projection, seen, map(project, after_attention), ridge
                    )
                if parts.ffn or (parts.blocks and dropped):
                    seen = [run_student.ffn(mine, s) for s in stream]
                    projection = mine.mlp.linear_fc2.weight
                    change, found[f"{index}.ffn"] = _fit(
                        f"{index}.ffn", projection, seen, map(project, reference), ridge
                    )
                    stream = [s + x @ change.T for x, s in seen]
                else:
                    stream = [run_student(mine, s) for s in stream]
            advance()
    _send(reference, stream)
    return found


def _receive(
    source: GPTModel, student: GPTModel, batches: list[Tensor], device: torch.device
) -> tuple[list[Tensor], list[Tensor]] | None:
    """Both streams from the stage before; None on the first stage."""
    from megatron.core import parallel_state

    if parallel_state.is_pipeline_first_stage():
        return None
    origin = parallel_state.get_pipeline_model_parallel_prev_rank()
    streams = []
    for model in (source, student):
        dtype, width = next(model.parameters()).dtype, model.config.hidden_size
        streams.append([torch.empty(b.shape[1], b.shape[0], width, dtype=dtype, device=device) for b in batches])
        for tensor in streams[-1]:
            torch.distributed.recv(tensor, origin)
    return streams[0], streams[1]


def _send(*streams: list[Tensor]) -> None:
    """Both streams to the next stage."""
    from megatron.core import parallel_state

    if not parallel_state.is_pipeline_last_stage():
        for tensor in (tensor for stream in streams for tensor in stream):
            torch.distributed.send(tensor.contiguous(), parallel_state.get_pipeline_model_parallel_next_rank())
