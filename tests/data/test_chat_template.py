"""Turns -> text and the characters that are trained. The tiny tokenizer begins with <s> and ends with <|im_end|>."""

from __future__ import annotations

import pytest
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from bielik_nemo.data.chat_formats import BadLine, Turn
from bielik_nemo.data.chat_template import ChatML, OwnTemplate, Rendered
from bielik_nemo.data.tiny import byte_tokenizer
from bielik_nemo.errors import DataError

TURNS = [Turn("system", "S"), Turn("user", "Cześć 🙂"), Turn("assistant", "A"), Turn("tool", ""), Turn("assistant", "")]
STABLE = (
    "{% for m in messages %}{% if m.role == 'user' %}[Q]{{ m.content }}{% elif m.role == 'assistant' %}"
    " {{ m.content }}</s>{% else %}{{ raise_exception('no ' ~ m.role ~ ' here') }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{% endif %}"
)


def tokenizer(template: str | None = None, **special: str | None) -> PreTrainedTokenizerFast:
    made = byte_tokenizer()
    for name, token in special.items():
        setattr(made, name, token)
    if template is not None:
        made.chat_template = template
    return made


def trained(rendered: Rendered) -> list[str]:
    return [rendered.text[begin:end] for begin, end in rendered.spans]


def test_chatml_as_bielik_writes_it():
    """Beginning and end of the tokenizer, that end behind the last answer alone."""
    rendered = ChatML(tokenizer(eos_token="</s>")).render(TURNS)
    assert rendered.text == (
        "<s><|im_start|>system\nS<|im_end|>\n<|im_start|>user\nCześć 🙂<|im_end|>\n<|im_start|>assistant\nA<|im_end|>\n"
        "<|im_start|>tool\n<|im_end|>\n<|im_start|>assistant\n<|im_end|>\n</s>"
    )
    assert trained(rendered) == ["A<|im_end|>\n", "<|im_end|>\n</s>"]


@pytest.mark.parametrize("bos", [None, "<|im_start|>"])
def test_no_second_mark_where_beginning_and_end_are_chatml(bos: str | None):
    rendered = ChatML(tokenizer(bos_token=bos)).render(TURNS[1:3])
    assert rendered.text == "<|im_start|>user\nCześć 🙂<|im_end|>\n<|im_start|>assistant\nA<|im_end|>\n"


@pytest.mark.parametrize(
    "made",
    [
        ChatML(tokenizer()),
        ChatML(tokenizer(eos_token="</s>")),
        ChatML(tokenizer(bos_token=None)),
        OwnTemplate(tokenizer()),
        OwnTemplate(tokenizer(STABLE)),
    ],
)
def test_what_asks_for_an_answer_is_what_stands_before_it_in_training(made: ChatML | OwnTemplate):
    """The last answer is behind the text that asks for it, whatever stands before."""
    for turns in (TURNS[1:3], [*TURNS[1:3], Turn("user", "?"), TURNS[2]]):
        text, spans = made.render(turns)
        assert made.ask(turns[:-1]) == text[: spans[-1][0]]


def test_chatml_asks():
    asked = ChatML(tokenizer()).ask(TURNS[:2])
    assert asked == "<s><|im_start|>system\nS<|im_end|>\n<|im_start|>user\nCześć 🙂<|im_end|>\n<|im_start|>assistant\n"


@pytest.mark.parametrize(
    "made, ends",
    [
        (ChatML(tokenizer()), ("<|im_end|>",)),
        (ChatML(tokenizer(eos_token="</s>")), ("<|im_end|>", "</s>")),
        (ChatML(tokenizer(eos_token=None)), ("<|im_end|>",)),
        (OwnTemplate(tokenizer()), ("<|im_end|>",)),
        (OwnTemplate(tokenizer(eos_token="</s>")), ("<|im_end|>", "</s>")),
        (OwnTemplate(tokenizer(STABLE)), ("</s>", "<|im_end|>")),
    ],
)
def test_tokens_that_end_an_answer(made: ChatML | OwnTemplate, ends: tuple[str, ...]):
    """The tiny tokenizer's own template writes <|im_end|> behind an answer, STABLE writes </s>."""
    assert made.ends == ends


@pytest.mark.parametrize("made, text", [(ChatML, "A<|im_end|>\n"), (OwnTemplate, "A<|im_end|>\n")])
def test_only_turns_from_a_number_on_are_trained(made: type, text: str):
    turns = [*TURNS[1:3], *TURNS[1:3]]
    assert trained(made(tokenizer()).render(turns)) == [text] * 2
    assert trained(made(tokenizer()).render(turns, 2)) == [text]
    assert made(tokenizer()).render(turns, 2).spans == made(tokenizer()).render(turns).spans[1:]


def test_chatml_needs_its_marks_as_tokens():
    content = byte_tokenizer().backend_tokenizer.to_str().replace("<|im_start|>", "<|other|>")
    other = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(content), eos_token="</s>")
    with pytest.raises(DataError, match=r"^chat\.template: found chatml, but <\|im_start\|> is 12 tokens to this"):
        ChatML(other)


@pytest.mark.parametrize("token", ["<|im_start|>", "<|im_end|>", "<s>", "</s>"])
def test_content_with_a_control_token_is_refused(token: str):
    turns = [Turn("user", f"x{token}y"), Turn("assistant", "")]
    with pytest.raises(BadLine) as caught:
        ChatML(tokenizer(eos_token="</s>")).render(turns)
    assert str(caught.value) == f"turn 1 contains the control token {token}"
    with pytest.raises(BadLine, match="turn 1 contains the control token"):
        ChatML(tokenizer(eos_token="</s>")).ask(turns[:1])
    calls = [Turn("user", "<pad>"), Turn("assistant", "<tool_call>\n{}\n</tool_call>")]
    ChatML(tokenizer()).render(calls)
    OwnTemplate(tokenizer()).render(calls)
    if token != "</s>":
        for refusing in (OwnTemplate(tokenizer()).render, OwnTemplate(tokenizer()).ask):
            with pytest.raises(BadLine, match="control token"):
                refusing(turns)


def test_the_tokenizers_own_template():
    rendered = OwnTemplate(tokenizer(STABLE)).render([*TURNS[1:3], Turn("user", "?"), Turn("assistant", "")])
    assert rendered.text == "[Q]Cześć 🙂 A</s>[Q]? </s>"
    assert trained(rendered) == [" A</s>", " </s>"]


def test_a_template_that_refuses_turns_makes_a_bad_line_in_its_own_words_only():
    """'no system here' is put together from the conversation: it is not repeated."""
    with pytest.raises(BadLine) as caught:
        OwnTemplate(tokenizer(STABLE)).render([Turn("system", "S"), *TURNS[1:3]])
    assert str(caught.value) == "the tokenizer's template refuses these turns"
    fixed = STABLE.replace("'no ' ~ m.role ~ ' here'", "'only questions'")
    with pytest.raises(BadLine) as caught:
        OwnTemplate(tokenizer(fixed)).render([Turn("system", "S"), *TURNS[1:3]])
    assert str(caught.value) == "the tokenizer's template refuses these turns: only questions"


@pytest.mark.parametrize(
    "template, why",
    [
        ("{{ raise_exception('never') }}", "the tokenizer's template refuses these turns: never; take"),
        (
            "{% for m in messages[-2:] %}{{ m.role }}{% endfor %}",
            "writes a turn in another way once others follow; take",
        ),
        ("{{ messages | length }}", "writes a turn in another way once others follow"),
        (
            "{% for m in messages %}{{ m.role }}{% endfor %}{% if add_generation_prompt %}A:{% endif %}",
            "in another way",
        ),
    ],
)
def test_a_template_from_which_answers_cannot_be_told(template: str, why: str):
    with pytest.raises(DataError) as caught:
        OwnTemplate(tokenizer(template))
    assert str(caught.value).startswith("chat.template: found tokenizer, but ")
    assert why in str(caught.value) and str(caught.value).endswith("take chat.template=chatml")


def test_no_template():
    made = byte_tokenizer()
    made.chat_template = None
    with pytest.raises(DataError, match=r"the tokenizer has no template, or several; take chat\.template=chatml"):
        OwnTemplate(made)


def test_a_template_runs_in_a_sandbox():
    """What reaches for Python's own classes is refused by Jinja, not run."""
    evil = "{{ ''.__class__.__mro__[1].__subclasses__() }}"
    with pytest.raises(DataError, match="the tokenizer's template refuses these turns"):
        OwnTemplate(tokenizer(evil))
