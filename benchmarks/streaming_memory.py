"""Memory of cutting the Bielik-11B shape by streaming: random weights in 22 GB of files, experiment 010, random scores.

    python benchmarks/streaming_memory.py --directory /scratch

Needs 38 GB of disk below the directory for the time of the run. The source is written tensor by tensor, in files of
5 GB as on the Hugging Face Hub. The cut runs in a process of its own, started as a user would start it from Python (see
`cut`); its peak is the kernel's high-water mark of resident memory, mapped pages of files included. Afterwards some
tensors of the result, chosen at random, are compared with the source's by index.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from safetensors import safe_open

from bielik_nemo.architecture import Architecture
from bielik_nemo.config import Config, compose
from bielik_nemo.engine import streaming
from bielik_nemo.engine.hf_reader import INDEX, expected_shapes
from bielik_nemo.engine.scores import Scores
from bielik_nemo.prune.kept import Kept, choose, kept_layers
from bielik_nemo.validation.shapes import source_architecture, target_architecture

SHARD_BYTES = 5_000_000_000


def configuration() -> Config:
    """The teacher's shape and experiment 010."""
    return compose("bielik_minitron_7b", ["prune=exp_010"])


def write_source(directory: Path, a: Architecture) -> None:
    """A Hugging Face checkpoint of uniform random bf16 weights."""
    shards: list[dict[str, tuple[int, ...]]] = [{}]
    size = 0
    for name, shape in expected_shapes(a).items():
        size += 2 * torch.Size(shape).numel()
        if size > SHARD_BYTES:
            shards.append({})
            size = 2 * torch.Size(shape).numel()
        shards[-1][name] = shape
    files = {}
    draw = torch.Generator().manual_seed(0)
    for number, shard in enumerate(shards, 1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        files |= dict.fromkeys(shard, file)
        header, offset = {}, 0
        for name, shape in shard.items():
            end = offset + 2 * torch.Size(shape).numel()
            header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [offset, end]}
            offset = end
        text = json.dumps(header).encode()
        with open(directory / file, "wb") as stream:
            stream.write(len(text).to_bytes(8, "little") + text)
            for shape in shard.values():
                tensor = torch.empty(shape, dtype=torch.bfloat16).uniform_(-0.05, 0.05, generator=draw)
                stream.write(tensor.view(torch.int16).numpy().data)
    (directory / INDEX).write_text(json.dumps({"weight_map": files}))
    (directory / "config.json").write_text(json.dumps(a.to_hf()))


def write_scores(path: Path, a: Architecture) -> None:
    """Random scores."""
    units = {f"norms.{i}": torch.rand(a.hidden_size) for i in range(2 * a.num_layers)}
    for i in range(a.num_layers):
        units[f"decoder.layers.{i}.self_attention"] = torch.rand(a.num_attention_heads * a.head_dim)
        units[f"decoder.layers.{i}.mlp"] = torch.rand(a.ffn_hidden_size)
    Scores(torch.rand(a.num_layers, dtype=torch.float64), units).save(path)


def cut(work: Path) -> None:
    """What a user writes to cut a checkpoint with the scores given; prints time and peak memory as JSON."""
    source = Architecture.from_hf(work / "source")
    target = target_architecture(configuration(), source)
    scores = Scores.load(work / "scores.safetensors")
    start = time.monotonic()
    kept = choose(scores, source, target, kept_layers(scores, target.num_layers))
    kept.to_json(work / "kept.json")
    streaming.cut(work / "source", work / "cut", source, target, kept, dtype="bfloat16")
    status = Path("/proc/self/status").read_text()
    print(
        json.dumps(
            {
                "peak_gib": int(re.search(r"VmHWM:\s+(\d+)", status)[1]) / 2**20,
                "ru_maxrss_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
                "seconds": time.monotonic() - start,
            }
        )
    )


def read(directory: Path, name: str) -> torch.Tensor:
    """One tensor of a sharded checkpoint."""
    file = json.loads((directory / INDEX).read_text())["weight_map"][name]
    with safe_open(directory / file, framework="pt") as opened:
        return opened.get_tensor(name).clone()


def differing(work: Path, target: Architecture, count: int) -> list[str]:
    """Of `count` random tensors of the result those that are not the source's by index; layers are told apart."""
    kept = Kept.from_json(work / "kept.json")
    names = random.Random(0).sample(sorted(expected_shapes(target)), count)
    # One of each kind that the experiment cuts is always among them.
    names += [f"model.layers.{target.num_layers - 1}.mlp.{part}_proj.weight" for part in ("gate", "up", "down")]
    found = []
    for name in names:
        new, source_name = read(work / "cut", name), name
        match = re.match(r"model\.layers\.(\d+)\.", name)
        if match:
            layer = kept.layers[int(match[1])]
            source_name = name.replace(match[0], f"model.layers.{layer}.")
            ffn = kept.ffn[layer]
        old = read(work / "source", source_name)
        if "gate_proj" in name or "up_proj" in name:
            old = old[ffn]
        elif "down_proj" in name:
            old = old[:, ffn]
        if not torch.equal(new, old):
            found.append(name)
    print(f"compared {len(names)} tensors with the source's by index: {len(found)} differ {found}")
    return found


def main() -> int:
    """Write, cut, compare, remove."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--directory", type=Path, default=Path(tempfile.gettempdir()), help="where to work")
    parser.add_argument("--compare", type=int, default=24, help="how many tensors are compared")
    parser.add_argument("--cut", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.cut:
        cut(arguments.cut)
        return 0
    config = configuration()
    source = source_architecture(config)
    target = target_architecture(config, source)
    need, free = 2 * (source.num_parameters() + target.num_parameters()), shutil.disk_usage(arguments.directory).free
    if need > free:
        parser.error(f"--directory: found {free / 1e9:.0f} GB free, allowed: at least {need / 1e9:.0f} GB")
    with tempfile.TemporaryDirectory(prefix="streaming-", dir=arguments.directory) as name:
        work = Path(name)
        (work / "source").mkdir()
        start = time.monotonic()
        write_source(work / "source", source)
        write_scores(work / "scores.safetensors", source)
        size = sum(path.stat().st_size for path in (work / "source").iterdir())
        print(f"source: {source.num_parameters():,} parameters, {size:,} bytes in {time.monotonic() - start:.0f} s")
        done = subprocess.run([sys.executable, __file__, "--cut", work], check=True, capture_output=True, text=True)
        found = json.loads(done.stdout.splitlines()[-1])
        size = sum(path.stat().st_size for path in (work / "cut").iterdir())
        print(f"result: {target.num_parameters():,} parameters, {size:,} bytes in {found['seconds']:.0f} s")
        print(f"peak resident memory: {found['peak_gib']:.2f} GiB (ru_maxrss: {found['ru_maxrss_gib']:.2f} GiB)")
        return 1 if differing(work, target, arguments.compare) or found["peak_gib"] >= 8 else 0


if __name__ == "__main__":
    sys.exit(main())
