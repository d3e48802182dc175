"""What of conversations and pairs is trained: the beginning of every source, drawn for a terminal.

Drawn from the tokens: what is shown as trained is what SFT and DPO will train.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from itertools import groupby, islice
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.text import Text

from bielik_nemo import ui
from bielik_nemo.architecture import Architecture
from bielik_nemo.artifacts import Manifest
from bielik_nemo.config import Config
from bielik_nemo.data import chat
from bielik_nemo.data.builtin import resolve_model_source, resolve_tokenizer
from bielik_nemo.data.chat import Line, Tokens
from bielik_nemo.data.chat_formats import BadLine
from bielik_nemo.data.chat_template import TEMPLATES
from bielik_nemo.data.tokenizer import load_tokenizer, open_tokenizer
from bielik_nemo.errors import ConfigError, DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

READ, SHOWN, NAMED = 100, 2, 3
"""Lines of a source that are read, of these shown, and of the bad ones named."""
LONGEST = 800
"""Characters between two changes of the mark; of more, the middle is left out."""


def preview(config: Config, console: Console) -> None:
    """Print the first conversations of every source of SFT and the first pairs of every one of DPO.

    Trained tokens are green and the rest dim; without colours they are between brackets.

    Raises:
        ConfigError: there is no source.
        DataError: a source or the tokenizer cannot be used; nothing in a source is trained, or everything.
    """
    readers = (("sft", config.sft.sources, chat.conversations), ("dpo", config.dpo.sources, chat.pairs))
    if not any(sources for _, sources, _ in readers):
        raise ConfigError("sft.sources, dpo.sources: found none, allowed: a list of paths for one of them or both")
    with ui.library_output_to(Path(os.devnull)):
        tokenizer = _tokenizer(config)
        template = TEMPLATES[config.chat.template](tokenizer)
    coloured = console.color_system is not None and not console.no_color
    _say(console, f"trained: {'green, the rest dim' if coloured else 'between [[ and ]]'}; a line break: \u21b5")
    for key, sources, read in readers:
        for index, source in enumerate(sources):
            where = f"{key}.sources[{index}].path={source.path}"
            _say(console, f"\n{where}")
            _source(console, where, tokenizer, list(islice(read(source, template), READ)), coloured)


def _source(
    console: Console, where: str, tokenizer: PreTrainedTokenizerBase, lines: list[Line], coloured: bool
) -> None:
    bad = [f"{line.file}:{line.number}: {line.example}" for line in lines if isinstance(line.example, BadLine)]
    found = [(line, texts) for line, _, texts in chat.tokenised(tokenizer, lines)]
    if not lines:
        raise DataError(f"{where}: holds no lines")
    if not found:
        raise DataError(f"{where}: none of the first {len(lines)} lines can be used; {'; '.join(bad[:NAMED])}")
    for line, texts in found[:SHOWN]:
        for name, tokens in zip(("chosen", "rejected") if len(texts) > 1 else ("conversation",), texts, strict=True):
            _say(console, f"\n{line.file}:{line.number} {name}: {_counts([tokens])}")
            console.print(_drawn(tokenizer, tokens, coloured), soft_wrap=True)
    everything = [tokens for _, texts in found for tokens in texts]
    _say(console, f"\nthe first {len(lines)} lines: {len(found)} usable, {_counts(everything)}")
    for reason in bad[:NAMED]:
        _say(console, f"left out: {reason}")
    chat.check_marks(where, sum(len(t.ids) for t in everything), sum(int(t.trained.sum()) for t in everything))


def _tokenizer(config: Config) -> PreTrainedTokenizerBase:
    """The run's, where this source was imported in it; otherwise the source's own, or the one that it is given."""
    if "swap_tokenizer" in config.pipeline.stages:
        with tempfile.TemporaryDirectory() as workdir:
            return open_tokenizer(resolve_tokenizer(config.swap_tokenizer.tokenizer, Path(workdir)))
    imported = Path(config.run.dir) / "import_hf"
    manifest = Manifest.read(imported)
    if manifest and config.model.source in manifest.sources:
        return load_tokenizer(imported / "tokenizer", Architecture.from_json(imported / "architecture.json").vocab_size)
    with tempfile.TemporaryDirectory() as workdir:
        directory = resolve_model_source(config.model.source, Path(workdir))
        return load_tokenizer(directory, Architecture.from_hf(directory).vocab_size)


def _drawn(tokenizer: PreTrainedTokenizerBase, tokens: Tokens, coloured: bool) -> Text:
    text = Text()
    for trained, run in _runs(tokens):
        words = _visible(tokenizer.decode(run, skip_special_tokens=False, clean_up_tokenization_spaces=False))
        if coloured:
            text.append(words, style="green" if trained else "dim")
        else:
            text.append(f"[[{words}]]" if trained else words)
    return text


def _runs(tokens: Tokens) -> Iterator[tuple[bool, list[int]]]:
    """Neighbouring ids of one mark."""
    for trained, run in groupby(zip(tokens.trained.tolist(), tokens.ids.tolist(), strict=True), lambda each: each[0]):
        yield trained, [token for _, token in run]


def _visible(text: str) -> str:
    """Text with its line breaks marked, whose other control characters do nothing to the terminal."""
    if len(text) > LONGEST:
        left_out = len(text) - LONGEST
        text = f"{text[: LONGEST // 2]} (... {left_out:,} characters ...) {text[-LONGEST // 2 :]}"
    shown = (c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text)
    return "".join(shown).replace("\n", "\u21b5\n")


def _counts(texts: list[Tokens]) -> str:
    tokens, trained = sum(len(each.ids) for each in texts), sum(int(each.trained.sum()) for each in texts)
    return f"{tokens:,} tokens, {trained:,} trained ({trained / max(tokens, 1):.0%})"


def _say(console: Console, line: str) -> None:
    console.print(Text(line), soft_wrap=True)
