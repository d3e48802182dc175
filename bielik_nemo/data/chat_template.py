"""Turns -> the text that the model reads, and which characters of it the model is trained to write.

`chatml` is OpenChatML as Bielik's trainer writes it (ALLaMo, prepare_sft_dataset.py): `<s>`, for every turn
`<|im_start|>{role}`, a line break, `{content}<|im_end|>` and another, and `</s>` behind the last answer. Trained are an
answer, its `<|im_end|>` and line break, and that `</s>`; not the header `<|im_start|>assistant` and its line break.
Where a tokenizer has no beginning or end, or they are ChatML's tokens, there is none.

`tokenizer` is the checkpoint's own template, run in the sandbox of transformers. An answer is what rendering it adds to
the text that asks for it (`add_generation_prompt`), which must be a beginning of every longer text.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from bielik_nemo.data.chat_formats import TOOL_TAGS, BadLine, Turn
from bielik_nemo.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

START, END = "<|im_start|>", "<|im_end|>"


class Rendered(NamedTuple):
    """A conversation as text."""

    text: str
    spans: list[tuple[int, int]]  # characters that are trained, first and behind the last, in order


class ChatML:
    """OpenChatML.

    Attributes:
        control: tokens that no turn may contain.
        ends: tokens that end an answer: `<|im_end|>`, and the tokenizer's own end where it is another.

    Raises:
        DataError: its marks are not tokens of this tokenizer.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase):
        for mark in (START, END):
            ids = tokenizer(mark, add_special_tokens=False)["input_ids"]
            if tokenizer.convert_ids_to_tokens(ids) != [mark]:
                raise DataError(
                    f"chat.template: found chatml, but {mark} is {len(ids)} tokens to this tokenizer; allowed: chatml "
                    "with a tokenizer that has it as one (add it to the checkpoint), or tokenizer"
                )
        self.begin, self.end = (
            "" if token in (None, START, END) else token for token in (tokenizer.bos_token, tokenizer.eos_token)
        )
        self.control = tuple(filter(None, (START, END, self.begin, self.end)))
        self.ends = tuple(filter(None, (END, self.end)))

    def render(self, turns: Sequence[Turn], trained_from: int = 0) -> Rendered:
        """The text of turns that end with an answer; the answers from turn `trained_from` on are trained.

        Raises:
            BadLine: a turn contains a control token.
        """
        _check(turns, self.control)
        text, spans = self.begin, []
        for number, (role, content) in enumerate(turns):
            text += f"{START}{role}\n"
            begin = len(text)
            text += f"{content}{END}\n" + self.end * (number == len(turns) - 1)
            if role == "assistant" and number >= trained_from:
                spans.append((begin, len(text)))
        return Rendered(text, spans)

    def ask(self, turns: Sequence[Turn]) -> str:
        """The text that asks for the answer to turns, which is what is not trained where `render` has that answer.

        Raises:
            BadLine: a turn contains a control token.
        """
        _check(turns, self.control)
        said = "".join(f"{START}{role}\n{content}{END}\n" for role, content in turns)
        return f"{self.begin}{said}{START}assistant\n"


class OwnTemplate:
    """The tokenizer's own template.

    Attributes:
        control: tokens that no turn may contain.
        ends: tokens that end an answer: the one that the template writes behind it, and the tokenizer's own end.

    Raises:
        DataError: it has none, or one from which answers cannot be told.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase):
        self.tokenizer = tokenizer
        use = "take chat.template=chatml"
        if not isinstance(tokenizer.chat_template, str):
            raise DataError(f"chat.template: found tokenizer, but the tokenizer has no template, or several; {use}")
        added = [token.content for token in tokenizer.added_tokens_decoder.values()]
        spelled = [token for token in added if token in tokenizer.chat_template and token not in TOOL_TAGS]
        self.control = tuple(dict.fromkeys([*spelled, *filter(None, (tokenizer.bos_token, tokenizer.eos_token))]))
        try:
            shown = self.render([Turn(role, role) for role in ("user", "assistant") * 2])
        except BadLine as error:
            raise DataError(f"chat.template: found tokenizer, but {error}; {use}") from None
        begin, end = shown.spans[-1]
        behind = shown.text[begin:end].rpartition("assistant")[2].lstrip()
        marks = (*(token for token in added if behind.startswith(token)), tokenizer.eos_token)
        self.ends = tuple(dict.fromkeys(filter(None, marks)))

    def render(self, turns: Sequence[Turn], trained_from: int = 0) -> Rendered:
        """The same as `ChatML.render`.

        Raises:
            BadLine: also when the template refuses the turns, or writes one in another way once others follow.
        """
        _check(turns, self.control)
        text, spans = self._text(turns), []
        for number, turn in enumerate(turns):
            if turn.role == "assistant" and number >= trained_from:
                asked, answered = self._text(turns[:number], ask=True), self._text(turns[: number + 1])
                if not (text.startswith(answered) and answered.startswith(asked)):
                    raise BadLine("the tokenizer's template writes a turn in another way once others follow")
                spans.append((len(asked), len(answered)))
        return Rendered(text, spans)

    def ask(self, turns: Sequence[Turn]) -> str:
        """The same as `ChatML.ask`.

        Raises:
            BadLine: also when the template refuses the turns.
        """
        _check(turns, self.control)
        return self._text(turns, ask=True)

    def _text(self, turns: Sequence[Turn], ask: bool = False) -> str:
        from jinja2 import TemplateError

        messages = [turn._asdict() for turn in turns]
        try:
            return self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=ask)
        except (TemplateError, TypeError, ValueError, LookupError) as error:
            # What the template says, unless it may be of the conversation.
            why = f": {error}" if str(error) in self.tokenizer.chat_template else ""
            raise BadLine(f"the tokenizer's template refuses these turns{why}") from None


TEMPLATES = {"chatml": ChatML, "tokenizer": OwnTemplate}
"""By `chat.template`."""


def _check(turns: Sequence[Turn], control: Sequence[str]) -> None:
    """Refuse content that would be read as the mark of a turn."""
    for number, turn in enumerate(turns, start=1):
        if found := next((token for token in control if token in turn.content), None):
            raise BadLine(f"turn {number} contains the control token {found}")
