"""Write the JSON Schema of NeMo-RL's configuration for GRPO, from a checkout of it, without importing it.

    git clone --branch v0.7.0 --depth 1 <NeMo-RL> nemo-rl
    python launch/nemo_rl_schema.py nemo-rl > bielik_nemo/align/nemo_rl/schema.json

NeMo-RL describes its configuration by TypedDicts and pydantic models, whose names, types and NotRequired are read from
the source. It lets unknown keys pass; the schema does not, so that a mistyped key is found before a job waits for a
hundred GPUs. `BESIDES` are keys that its code reads although no type names them, `OPTIONAL` those that a type asks for
although its code fills them in.
"""

from __future__ import annotations

import ast
import itertools
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = "MasterConfig"
FILES = (
    "nemo_rl/algorithms/grpo.py",
    "nemo_rl/algorithms/reward_functions.py",
    "nemo_rl/algorithms/loss/loss_functions.py",
    "nemo_rl/data/__init__.py",
    "nemo_rl/distributed/virtual_cluster.py",
    "nemo_rl/models/generation/interfaces.py",
    "nemo_rl/models/generation/vllm/config.py",
    "nemo_rl/models/policy/__init__.py",
    "nemo_rl/utils/checkpoint.py",
    "nemo_rl/utils/logger.py",
)
PLAIN = {
    "int": {"type": "integer"},
    "float": {"type": "number"},
    "str": {"type": "string"},
    "PathLike": {"type": "string"},
    "bool": {"type": "boolean"},
    "None": {"type": "null"},
    "Any": {},
    "dict": {"type": "object"},
    # Of other ways to train than the one that is rendered: they are never written, so that what is in them is open.
    "DataPlaneConfig": {"type": "object"},
    "OnPolicyDistillationConfig": {"type": "object"},
    "PreferenceDatasetConfig": {"type": "object", "maxProperties": 0},
    "SchedulerMilestones": {"type": "object"},
}
INSTEAD = {("PolicyConfig", "generation"): "VllmConfig"}  # the type says what all ways to generate have
BESIDES = {
    "MegatronConfig": {
        "moe_router_dtype": "str | None",
        "moe_router_load_balancing_type": "str",
        "moe_router_bias_update_rate": "float",
        "moe_permute_fusion": "bool",
    },
    "PolicyConfig": {"offload_optimizer_for_logprob": "bool"},
    "SequencePackingConfig": {"sequence_length_round": "NotRequired[int]"},
    "VllmSpecificArgs": {"enable_vllm_metrics_logger": "NotRequired[bool]"},
}
OPTIONAL = {("VllmSpecificArgs", "skip_tokenizer_init")}


def schema(checkout: Path) -> dict[str, Any]:
    """The schema of `ROOT` and all that it refers to."""
    classes = _classes(checkout)
    wanted, done = [ROOT], {}
    while wanted:
        name = wanted.pop()
        if name not in done:
            done[name] = _object(name, classes)
            wanted += re.findall(r'"#/\$defs/(\w+)"', json.dumps(done[name]))
    root = done.pop(ROOT)
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=checkout, capture_output=True, text=True, check=True)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "NeMo-RL's configuration of GRPO with a policy on Megatron and vLLM",
        "version": _version(checkout),
        "commit": commit.stdout.strip(),
        **root,
        "$defs": dict(sorted(done.items())),
    }


def _version(checkout: Path) -> str:
    text = (checkout / "nemo_rl/package_info.py").read_text()
    return ".".join(re.search(rf"^{part} = (\d+)", text, re.M)[1] for part in ("MAJOR", "MINOR", "PATCH"))


def _classes(checkout: Path) -> dict[str, ast.ClassDef]:
    trees = [ast.parse((checkout / file).read_text()) for file in FILES]
    return {node.name: node for tree in trees for node in tree.body if isinstance(node, ast.ClassDef)}


def _fields(name: str, classes: dict[str, ast.ClassDef]) -> dict[str, tuple[ast.expr, bool]]:
    """Annotation of each key, those of the bases first, and whether it has a default."""
    found: dict[str, tuple[ast.expr, bool]] = {}
    for base in classes[name].bases:
        if isinstance(base, ast.Name) and base.id in classes:
            found |= _fields(base.id, classes)
    for node in classes[name].body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            found[node.target.id] = node.annotation, node.value is not None
    for key, text in BESIDES.get(name, {}).items():
        found[key] = ast.parse(text, mode="eval").body, False
    for (owner, key), text in INSTEAD.items():
        if owner == name:
            found[key] = ast.parse(text, mode="eval").body, False
    return found


def _object(name: str, classes: dict[str, ast.ClassDef]) -> dict[str, Any]:
    properties, required = {}, []
    for key, (annotation, has_default) in _fields(name, classes).items():
        optional = has_default or (name, key) in OPTIONAL
        if isinstance(annotation, ast.Subscript) and ast.unparse(annotation.value) == "NotRequired":
            annotation, optional = annotation.slice, True
        properties[key] = _type(annotation, classes)
        if not optional:
            required.append(key)
    return {"type": "object", "additionalProperties": False, "required": required, "properties": properties}


def _type(node: ast.expr, classes: dict[str, ast.ClassDef]) -> dict[str, Any]:
    """What an annotation allows."""
    if isinstance(node, ast.BinOp):  # X | Y
        return _any(_type(node.left, classes), _type(node.right, classes))
    if isinstance(node, ast.Subscript):
        kind, inside = ast.unparse(node.value), node.slice
        parts = list(inside.elts) if isinstance(inside, ast.Tuple) else [inside]
        if kind == "Literal":
            return {"enum": [part.value for part in parts]}
        if kind == "Optional":
            return _any(_type(inside, classes), PLAIN["None"])
        if kind == "Union":
            return _any(*(_type(part, classes) for part in parts))
        if kind == "list":
            return {"type": "array", "items": _type(inside, classes)}
        if kind == "dict":
            return {"type": "object", "additionalProperties": _type(parts[1], classes)}
    name = ast.unparse(node)
    if name in classes and name not in PLAIN:
        return {"$ref": f"#/$defs/{name}"}
    return PLAIN[name]


def _any(*kinds: dict[str, Any]) -> dict[str, Any]:
    flat = [each for kind in kinds for each in kind.get("anyOf", [kind])]
    if all(list(each) == ["type"] for each in flat):
        names = (each["type"] if isinstance(each["type"], list) else [each["type"]] for each in flat)
        return {"type": list(itertools.chain.from_iterable(names))}
    return {"anyOf": flat}


if __name__ == "__main__":
    print(json.dumps(schema(Path(sys.argv[1])), indent=1))
