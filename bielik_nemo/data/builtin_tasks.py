r"""Tasks made here, whose answers a program can verify: what sources of GRPO, and of SFT, may name besides files.

Every other prompt of a set is a task, the ones between are conversations with a short right answer, so that SFT can
teach the form of an answer on prompts that are never tasks. All answers are in `\boxed{}`. The same prompts come
everywhere, in the same order.

`builtin:drills`: a few characters each, such as `max 3 7 5`, for a model of a quarter million parameters to which every
byte is a token; without a language. `builtin:arithmetic`, `builtin:ordering` and `builtin:counting`: small numbers and
words in Polish sentences, with `-english` behind their names in English ones. `builtin:polish-inflection`: forms of
Polish nouns and adjectives, see inflection.py.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator
from random import Random
from typing import Any, NamedTuple

from bielik_nemo.data import inflection
from bielik_nemo.errors import DataError

INFLECTION = "builtin:polish-inflection"
SIZE = 3000
"""Prompts of a set that is drawn: half of them are tasks."""


class Item(NamedTuple):
    """A prompt and its answer."""

    prompt: str
    answer: str
    working: str = ""  # what a conversation says before the answer


def tasks(name: str) -> Iterator[dict[str, Any]]:
    """The tasks of a set as lines: `{"prompt": ..., "answer": ..., "language": ...}`.

    Raises `DataError` while iterating: no such set.
    """
    for item in _items(name)[1::2]:
        yield {"prompt": item.prompt, "answer": item.answer, "language": SETS[name][1]}


def conversations(name: str) -> Iterator[dict[str, Any]]:
    """The conversations of a set as lines: `{"messages": [...]}`; none of their prompts is a task's.

    Raises `DataError` while iterating: no such set.
    """
    for item in _items(name)[::2]:
        answer = f"{item.working} \\boxed{{{item.answer}}}".strip()
        yield {"messages": [{"role": "user", "content": item.prompt}, {"role": "assistant", "content": answer}]}


def _items(name: str) -> list[Item]:
    """Prompts in the order in which they are drawn, each once."""
    if name not in SETS:
        near = difflib.get_close_matches(name, SETS, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise DataError(f"{name}: no such built-in set; allowed: {', '.join(SETS)}{hint}")
    make, language = SETS[name]
    return make(Random(name), language)


def _drawn(draw: Callable[[Random, str], Item]) -> Callable[[Random, str], list[Item]]:
    """What makes a set of items that are drawn one by one, each prompt once."""

    def items(random: Random, language: str) -> list[Item]:
        found: dict[str, Item] = {}
        while len(found) < SIZE:
            item = draw(random, language)
            found.setdefault(item.prompt, item)
        return list(found.values())

    return items


def _drill(random: Random, _language: str) -> Item:
    kind = random.choice(("max", "min", "sortuj", "suma", "ile"))
    if kind == "ile":
        letter, word = random.choice("abc"), "".join(random.choices("abc", k=random.randint(3, 6)))
        return Item(f"ile {letter} w {word}", str(word.count(letter)))
    if kind == "suma":
        a, b = random.choices(range(10), k=2)
        return Item(f"suma {a} {b}", str(a + b))
    digits = random.choices("123456789", k=3)  # none is 0, with which a sorted number would begin
    answer = {"max": max, "min": min, "sortuj": lambda each: "".join(sorted(each))}[kind](digits)
    return Item(f"{kind} {' '.join(digits)}", answer)


BOXED = {"pl": r"Wynik podaj w \boxed{}.", "en": r"Give the result in \boxed{}."}
ARITHMETIC = {
    "pl": {
        "+": ("Ile to jest {a} + {b}?", "Bilet kosztuje {a} zł, a książka {b} zł. Ile złotych kosztują razem?"),
        "-": ("Ile to jest {a} - {b}?", "Z worka, w którym było {a} kg mąki, wzięto {b} kg. Ile kilogramów zostało?"),
        "*": ("Ile to jest {a} * {b}?", "Pociąg jedzie {a} km w godzinę. Ile kilometrów przejedzie w czasie {b} h?"),
    },
    "en": {
        "+": ("What is {a} + {b}?", "A ticket costs ${a} and a book ${b}. How many dollars do both cost?"),
        "-": ("What is {a} - {b}?", "A sack held {a} kg of flour, and {b} kg were taken. How many kilograms are left?"),
        "*": ("What is {a} * {b}?", "A train goes {a} km in an hour. How many kilometres does it go in {b} h?"),
    },
}


def _arithmetic(random: Random, language: str) -> Item:
    """Of numbers from 2 to 99; products of one from 2 to 19 and one from 2 to 9."""
    sign = random.choice("+-*")
    a, b = (random.randint(2, 19), random.randint(2, 9)) if sign == "*" else random.sample(range(2, 100), 2)
    if sign == "-":
        a, b = max(a, b), min(a, b)
    result = {"+": a + b, "-": a - b, "*": a * b}[sign]
    question = random.choice(ARITHMETIC[language][sign]).format(a=a, b=b)
    return Item(f"{question} {BOXED[language]}", str(result), f"{a} {sign} {b} =")


ORDERING = {
    "pl": (
        "Ustaw liczby {numbers} {order}. Która z nich jest {place}?",
        ("rosnąco", "malejąco"),
        ("pierwsza", "druga", "trzecia", "czwarta"),
        "{order}: {sorted}.",
    ),
    "en": (
        "Put the numbers {numbers} in {order} order. Which of them is the {place}?",
        ("ascending", "descending"),
        ("first", "second", "third", "fourth"),
        "{order}: {sorted}.",
    ),
}


def _ordering(random: Random, language: str) -> Item:
    """Of four different numbers from 1 to 99."""
    question, orders, places, working = ORDERING[language]
    numbers, downwards, place = random.sample(range(1, 100), 4), random.randrange(2), random.randrange(4)
    in_order = sorted(numbers, reverse=bool(downwards))
    values = {"numbers": _listed(numbers), "order": orders[downwards], "place": places[place]}
    said = working.format(order=orders[downwards].capitalize(), sorted=_listed(in_order))
    return Item(f"{question.format(**values)} {BOXED[language]}", str(in_order[place]), said)


COUNTING = {
    "pl": (
        "Ile razy litera „{letter}” występuje w słowie „{word}”?",
        "Ile liczb większych od {limit} jest wśród liczb {numbers}?",
        "Większe od {limit}: {larger}.",
        "brak",
        "aparat kanarek banan parasol rower lokomotywa kukurydza ananas barbarzyńca tramwaj samolot biblioteka herbata "
        "malina pomarańcza karabinek katarakta abrakadabra korytarz sanatorium gospodarka rododendron matematyka "
        "wiewiórka zegarek latarnia parapet kalendarz temperatura koordynator",
    ),
    "en": (
        'How many times is the letter "{letter}" in the word "{word}"?',
        "How many of the numbers {numbers} are greater than {limit}?",
        "Greater than {limit}: {larger}.",
        "none",
        "banana parallel committee engineer strawberry mississippi balloon letter assessment coconut tomorrow "
        "bookkeeper referee success cabbage alfalfa avocado excellent bubble necessary terrace occurrence pepper "
        "professor hippopotamus rhododendron addressee settlement possession",
    ),
}


def _counting(random: Random, language: str) -> Item:
    """Letters that a word has, or five numbers from 1 to 50."""
    letters, greater, working, none, words = COUNTING[language]
    if random.randrange(3) == 0:
        word = random.choice(words.split())
        letter = random.choice(word)
        question = letters.format(letter=letter, word=word)
        return Item(f"{question} {BOXED[language]}", str(word.count(letter)), f"{' '.join(word)}:")
    numbers, limit = random.sample(range(1, 51), 5), random.randint(5, 45)
    larger = [number for number in numbers if number > limit]
    question = greater.format(limit=limit, numbers=_listed(numbers))
    said = working.format(limit=limit, larger=_listed(larger) or none)
    return Item(f"{question} {BOXED[language]}", str(len(larger)), said)


def _listed(numbers: list[int]) -> str:
    return ", ".join(map(str, numbers))


def _inflection(random: Random, language: str) -> list[Item]:
    return [Item(f"{asked} {BOXED[language]}", answer) for asked, answer in inflection.questions(random)]


SETS: dict[str, tuple[Callable[[Random, str], list[Item]], str]] = {
    "builtin:drills": (_drawn(_drill), ""),
    "builtin:arithmetic": (_drawn(_arithmetic), "pl"),
    "builtin:arithmetic-english": (_drawn(_arithmetic), "en"),
    "builtin:ordering": (_drawn(_ordering), "pl"),
    "builtin:ordering-english": (_drawn(_ordering), "en"),
    "builtin:counting": (_drawn(_counting), "pl"),
    "builtin:counting-english": (_drawn(_counting), "en"),
    INFLECTION: (_inflection, "pl"),
}
"""What makes the items of each set, in order, and its language."""
