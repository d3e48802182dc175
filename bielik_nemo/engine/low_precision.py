"""FP8 and NVFP4 by Model Optimizer (nvidia-modelopt 0.43.0): plain post-training quantisation of weights and inputs.

Scales come from the largest values seen on calibration tokens, as in the Bielik-Minitron report; embeddings and output
head stay as they are. What is written is Model Optimizer's unified checkpoint, which vLLM loads. Where its runtime is
not at hand, the files are read back and computed with: weights as their stored numbers and scales say, the inputs of
each matrix rounded with the stored scale, both by Model Optimizer's own tensors, products and sums in float32.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from bielik_nemo.engine import cpu

if TYPE_CHECKING:
    from transformers import PreTrainedModel

CONFIGS = {"fp8": "FP8_DEFAULT_CFG", "nvfp4": "NVFP4_DEFAULT_CFG"}
BLOCK = 16  # weights or inputs that share a scale in NVFP4
LARGEST_FP8, LARGEST_FP4 = 448.0, 6.0
"""Largest numbers of e4m3 and of e2m1."""


def write(
    model: PreTrainedModel,
    target: Path,
    kind: str,
    samples: Tensor,
    keep_layers: int = 0,
    on_sample: Callable[[], None] = lambda: None,
) -> None:
    """Quantise a model, which is used up, and write it as a Hugging Face directory without a tokenizer.

    Args:
        model: transformers', in the dtype in which what stays as it is is written.
        target: where to write.
        kind: `fp8` or `nvfp4`.
        samples: calibration token ids `[n, s]`.
        keep_layers: so many layers at the beginning and at the end stay as they are.
        on_sample: called once a sample is through.
    """
    import modelopt.torch.quantization as mtq
    from modelopt.torch.export import export_hf_checkpoint

    settings = copy.deepcopy(getattr(mtq, CONFIGS[kind]))
    count = model.config.num_hidden_layers
    for layer in {*range(min(keep_layers, count)), *range(max(count - keep_layers, 0), count)}:
        settings["quant_cfg"][f"*layers.{layer}.*"] = {"enable": False}

    @torch.no_grad()
    def calibrate(calibrated: PreTrainedModel) -> None:
        for sample in samples.to(model.device):
            calibrated.model(sample[None], use_cache=False)
            on_sample()

    cpu.enable()  # modelopt asks for the compute capability of a GPU that may not be there
    with torch.inference_mode():
        export_hf_checkpoint(mtq.quantize(model, settings, calibrate), export_dir=target)


@torch.no_grad()
def simulated(model: PreTrainedModel, directory: Path) -> PreTrainedModel:
    """A model of the same shape in float32, changed to compute what the files of `write` say.

    Args:
        model: transformers', in float32.
        directory: what `write` has left.
    """
    cpu.enable()
    stored: dict[str, Tensor] = {}
    for file in sorted(directory.glob("*.safetensors")):
        stored |= load_file(file)
    for name, parameter in model.named_parameters():
        scales = [stored[f"{name}{each}"] for each in ("_scale", "_scale_2") if f"{name}{each}" in stored]
        parameter.copy_(_exact(stored[name], scales, parameter.shape))
    for name, module in model.named_modules():
        if (scale := stored.get(f"{name}.input_scale")) is not None:
            module.register_forward_pre_hook(_rounding(scale.to(model.device), f"{name}.weight_scale_2" in stored))
    return model


def _exact(stored: Tensor, scales: Sequence[Tensor], shape: torch.Size) -> Tensor:
    """What stored numbers stand for, in float32: FP8 has one scale, NVFP4 one for each block and one for all."""
    from modelopt.torch.quantization.qtensor import FP8QTensor, NVFP4QTensor

    if not scales:
        return stored.float()
    if len(scales) == 1:
        return FP8QTensor(shape, torch.float32, stored).dequantize(torch.float32, scale=scales[0])
    return NVFP4QTensor(shape, torch.float32, stored).dequantize(
        torch.float32, scale=scales[0], double_scale=scales[1], block_sizes={-1: BLOCK}
    )


def _rounding(scale: Tensor, in_fp4: bool) -> Callable[[nn.Module, tuple[Tensor, ...]], tuple[Any, ...]]:
    """A hook that gives a module its inputs as the format can hold them; what is too large becomes its largest."""
    from modelopt.torch.quantization.qtensor import FP8QTensor, NVFP4QTensor

    largest = scale * LARGEST_FP8 * (LARGEST_FP4 if in_fp4 else 1)

    def rounded(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Any, ...]:
        x = inputs[0].float().clamp(-largest, largest)
        if not in_fp4:
            return FP8QTensor.quantize(x, scale)[0].dequantize(torch.float32, scale=scale), *inputs[1:]
        found, block_scale, _ = NVFP4QTensor.quantize(x, BLOCK, weights_scaling_factor_2=scale)
        exact = found.dequantize(torch.float32, scale=block_scale, double_scale=scale, block_sizes={-1: BLOCK})
        return exact, *inputs[1:]

    return rounded
