"""Give the model another tokenizer: keep the embeddings of shared tokens and make the others of them (data/focus.py).

Its model and tokenizer are the run's from here on; the model has to be trained before it is of use.

Leaves `megatron/`, `architecture.json`, `parity.json`, `tokenizer/` (the new one's files, and a config.json) and
`swap.json`: how many tokens were copied, mixed and drawn.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bielik_nemo import artifacts, ui
from bielik_nemo.architecture import Architecture
from bielik_nemo.config import Config
from bielik_nemo.config_prune import TextSource
from bielik_nemo.data import auxiliary, focus
from bielik_nemo.data.builtin import resolve_model_source, resolve_tokenizer
from bielik_nemo.data.text import Document, is_held_out, read_documents
from bielik_nemo.data.tokenizer import load_tokenizer, open_tokenizer
from bielik_nemo.data.vocabulary import ROLES, overlap
from bielik_nemo.engine import checkpoint, convert, distributed, vocabulary
from bielik_nemo.errors import DataError
from bielik_nemo.stages.import_hf import converted

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def run(config: Config, run_dir: Path) -> dict[str, Any]:
    """Make the embeddings, write the model, and check it as `import_hf` does its source.

    Raises:
        CheckpointError: the source is damaged.
        DataError: a tokenizer or a text cannot be read, or there is nothing that the vocabularies share.
        GateError: an activation is not finite, or the converted model gives other logits.
    """
    here, seed = run_dir / "swap_tokenizer", config.run.seed
    source = resolve_model_source(config.model.source, here / "source")
    before = Architecture.from_json(run_dir / "import_hf" / "architecture.json")
    given = resolve_tokenizer(config.swap_tokenizer.tokenizer, here / "source")
    new, old = open_tokenizer(given), load_tokenizer(run_dir / "import_hf" / "tokenizer", before.vocab_size)
    if new.eos_token_id is None:
        raise DataError(f"{given}: the tokenizer names no eos_token, which separates documents")
    after = replace(before, vocab_size=max(new.get_vocab().values()) + 1)
    planned = plan(config, new, old, after.vocab_size, before.vocab_size)
    _write_tokenizer(given, new, after, here / "tokenizer")
    vocabulary.swap(source, here / "swapped", before, after, planned, here / "tokenizer", config.model.dtype, seed)
    with distributed.model_parallel(1, 1, seed):
        megatron, found = converted(config, here / "swapped", after, 1, 1)
        checkpoint.save(megatron, here / "megatron")
    counts = {"copied": planned.copied.shape[1], "mixed": len(planned.mixed), "drawn": len(planned.drawn)}
    ui.say(f"  {after.vocab_size:,} tokens: {', '.join(f'{count:,} {name}' for name, count in counts.items())}")
    artifacts.write_json(here / "swap.json", {"before": before.vocab_size, "after": after.vocab_size} | counts)
    artifacts.write_json(here / "parity.json", found)
    after.to_json(here / "architecture.json")
    return counts | {"parameters": after.num_parameters(), "parity": found["max_abs_logit_diff"]}


def plan(
    config: Config, new: PreTrainedTokenizerBase, old: PreTrainedTokenizerBase, size: int, old_size: int
) -> focus.Plan:
    """Where the rows of the new embeddings come from.

    Raises:
        DataError: a text cannot be read, or no token that both vocabularies have is seen often enough in it.
    """
    settings, shared = config.swap_tokenizer, overlap(new, old)
    documents = auxiliary.in_turn(_training(config, source) for source in config.data.sources)
    ids = auxiliary.read(new, documents, settings.tokens)
    seen, vectors = auxiliary.learn(ids, new.convert_ids_to_tokens(list(range(size))), settings, config.run.seed)
    if shared.keys().isdisjoint(seen):
        raise DataError(
            f"swap_tokenizer.tokenizer={settings.tokenizer}: of its {len(shared):,} tokens that the model has too, "
            f"none is {settings.min_count} times in {len(ids):,} tokens of data.sources, so that there is nothing to "
            "make the others of; give more text or another tokenizer"
        )
    return focus.plan(size, old_size, shared, seen, vectors)


def _training(config: Config, source: TextSource) -> Iterator[Document]:
    """Documents that the stage `data` will not set aside."""
    fraction, seed = config.data.held_out_fraction, config.run.seed
    found = read_documents(source.path, source.text_key)
    return (document for document in found if not is_held_out(document, fraction, seed))


def _write_tokenizer(given: Path, tokenizer: PreTrainedTokenizerBase, shape: Architecture, target: Path) -> None:
    """The tokenizer's files, and the config.json from which exports take the ids of special tokens."""
    target.mkdir()
    convert.copy_tokenizer(given, target)
    roles = {role: getattr(tokenizer, role) for role in ROLES if role != "unk_token_id"}
    ids = {role: index for role, index in roles.items() if index is not None}
    (target / "config.json").write_text(json.dumps(shape.to_hf() | ids, indent=2) + "\n")
