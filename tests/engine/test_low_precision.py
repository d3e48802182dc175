"""FP8 and NVFP4: what Model Optimizer writes, read back and computed with."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from bielik_nemo.artifacts import read_json
from bielik_nemo.engine import low_precision

DOWN = "model.layers.1.mlp.down_proj.weight"


def load(directory: Path) -> torch.nn.Module:
    return AutoModelForCausalLM.from_pretrained(directory, torch_dtype=torch.float32)


def tokens(rows: int, seed: int) -> torch.Tensor:
    return torch.randint(0, 256, (rows, 32), generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def written(tiny_hf: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    base = tmp_path_factory.mktemp("low_precision")

    def build(kind: str, keep_layers: int = 0) -> Path:
        target = base / f"{kind}-{keep_layers}"
        if not target.is_dir():
            low_precision.write(load(tiny_hf), target, kind, tokens(4, 0), keep_layers)
        return target

    return build


def test_fp8_from_its_files_is_the_model_that_was_quantised(written, tiny_hf: Path):
    """Model Optimizer simulates FP8 on a CPU too. Its files share scales among q, k and v, and gate and up."""
    import modelopt.torch.quantization as mtq

    exact, probe = load(tiny_hf), tokens(2, 1)
    calibration = tokens(4, 0)
    with torch.no_grad():
        in_memory = mtq.quantize(load(tiny_hf), mtq.FP8_DEFAULT_CFG, lambda model: model(calibration))(probe).logits
        found = low_precision.simulated(load(tiny_hf), written("fp8"))(probe).logits
        expected = exact(probe).logits
    error = (in_memory - expected).square().mean().sqrt()
    assert 0 < error < 0.1 * expected.std()
    assert (found - in_memory).square().mean().sqrt() < 0.5 * error
    assert (found - expected).square().mean().sqrt() < 1.5 * error


def test_weights_in_nvfp4_are_the_nearest_that_there_are(written, tiny_hf: Path):
    """Of 0, 0.5, 1, 1.5, 2, 3, 4, 6 times the scales of a block and of all; the widest gap is 2, so half of it is 1.

    A block's largest weight is 6 times its scale, which is rounded to e4m3: to 1/16 of itself.
    """
    weight = load_file(tiny_hf / "model.safetensors")[DOWN]
    stored = load_file(written("nvfp4") / "model.safetensors")
    assert stored[DOWN].shape == (64, 80) and stored[DOWN].dtype == torch.uint8
    scale = stored[f"{DOWN}_scale"].float() * stored[f"{DOWN}_scale_2"]
    assert torch.allclose(scale, weight.abs().unflatten(1, (-1, 16)).amax(2) / 6, rtol=1 / 16)
    found = dict(low_precision.simulated(load(tiny_hf), written("nvfp4")).named_parameters())[DOWN]
    units = (found / scale.repeat_interleave(16, 1)).abs()
    grid = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6])
    assert torch.allclose((units[..., None] - grid).abs().amin(-1), torch.zeros(()), atol=1e-4)
    assert ((found - weight).abs() <= 1.001 * scale.repeat_interleave(16, 1)).all()


def test_inputs_in_fp8():
    """Around 1 e4m3 has steps of 0.125, around 400 of 32; 448 is the largest. With the scale 2 all are twice that."""
    rounded = low_precision._rounding(torch.tensor(2.0), in_fp4=False)
    (found,) = rounded(torch.nn.Identity(), (torch.tensor([2.1, 2.2, 790.0, 5000.0, -5000.0]),))
    assert found.tolist() == [2.0, 2.25, 768.0, 896.0, -896.0]


def test_inputs_in_nvfp4():
    """A block whose largest is 6 has the scale 1: 5.5 -> 6, 2.4 -> 2, 0.3 -> 0.5, 0.2 -> 0. One of 3 has half of it."""
    rounded = low_precision._rounding(torch.tensor(1.0), in_fp4=True)
    first = [6.0, 5.5, 2.4, -0.3, 0.2, *[0.0] * 11]
    (found,) = rounded(torch.nn.Identity(), (torch.tensor([first, [value / 2 for value in first]]).flatten(),))
    assert found[:5].tolist() == [6.0, 6.0, 2.0, -0.5, 0.0]
    assert found[16:21].tolist() == [3.0, 3.0, 1.0, -0.25, 0.0]


@pytest.mark.parametrize("kind", ["fp8", "nvfp4"])
def test_what_stays_as_it_is(kind: str, written, tiny_hf: Path):
    """Embeddings, norms and head always; with `keep_layers=1` the first and the last of the four layers too."""
    exact, all_layers, some = (
        load_file(directory / "model.safetensors") for directory in (tiny_hf, written(kind), written(kind, 1))
    )
    for name in ("model.embed_tokens.weight", "lm_head.weight", "model.norm.weight"):
        assert torch.equal(exact[name], all_layers[name])
    scaled = {int(name.split(".")[2]) for name in some if name.endswith("weight_scale")}
    assert scaled == {1, 2}
    assert {int(name.split(".")[2]) for name in all_layers if name.endswith("weight_scale")} == {0, 1, 2, 3}
    kept = "model.layers.3.mlp.up_proj.weight"
    assert torch.equal(some[kept], exact[kept])
    quantised = read_json(written(kind) / "config.json")["quantization_config"]
    assert (quantised["quant_method"], quantised["quant_algo"].lower()) == ("modelopt", kind)
