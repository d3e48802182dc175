from random import Random

import pytest

from bielik_nemo.align.reward import Completion, Task, Verdict
from bielik_nemo.align.rewards.maths import maths
from bielik_nemo.data import inflection


@pytest.fixture(scope="module")
def answers() -> dict[str, str]:
    return dict(inflection.questions(Random(0)))


@pytest.mark.parametrize(
    "question, answer",
    [
        ("Podaj dopełniacz liczby mnogiej rzeczownika „dom”.", "domów"),
        ("Podaj miejscownik liczby pojedynczej rzeczownika „dom”.", "domu"),
        ("Podaj biernik liczby pojedynczej rzeczownika „książka”.", "książkę"),
        ("Podaj celownik liczby pojedynczej rzeczownika „książka”.", "książce"),
        ("Podaj dopełniacz liczby mnogiej rzeczownika „okno”.", "okien"),
        ("Podaj miejscownik liczby pojedynczej rzeczownika „las”.", "lesie"),
        ("Podaj mianownik liczby mnogiej rzeczownika „człowiek”.", "ludzie"),
        ("Podaj dopełniacz liczby pojedynczej rzeczownika „stół”.", "stołu"),
        ("Podaj narzędnik liczby pojedynczej rodzaju żeńskiego przymiotnika „zielony”.", "zieloną"),
        ("Podaj mianownik liczby mnogiej rodzaju męskoosobowego przymiotnika „duży”.", "duzi"),
        ("Podaj biernik liczby mnogiej rodzaju męskoosobowego przymiotnika „nowy”.", "nowych"),
        ("Podaj biernik liczby mnogiej rodzaju niemęskoosobowego przymiotnika „nowy”.", "nowe"),
    ],
)
def test_forms_by_hand(answers: dict[str, str], question: str, answer: str):
    assert answers[question] == answer


@pytest.mark.parametrize(
    "question",
    [
        "Podaj biernik liczby pojedynczej rzeczownika „dom”.",  # the word itself
        "Podaj narzędnik liczby mnogiej rzeczownika „ręka”.",  # rękami, rękoma
    ],
)
def test_what_has_two_answers_or_none_is_not_asked(answers: dict[str, str], question: str):
    assert question not in answers


def test_every_word_is_asked_for(answers: dict[str, str]):
    """No word is there twice, and each is asked for."""
    words = [*inflection.NOUNS, *inflection.ADJECTIVES]
    assert len(set(words)) == len(words)
    asked = {question.split("„")[1].split("”")[0] for question in answers}
    assert [word for word in words if word not in asked] == []
    assert len(answers) > 3000


def test_the_reward_of_mathematics_tells_forms_apart(answers: dict[str, str]):
    """It compares words as words: another form of the same letters is another word."""
    task = Task("Podaj dopełniacz liczby mnogiej rzeczownika „dom”.", "domów", "pl")
    given = {r"\boxed{domów}": Verdict.CORRECT, r"\boxed{domow}": Verdict.WRONG, r"\boxed{modów}": Verdict.WRONG}
    assert {text: maths(Completion(text, 3), task).verdict for text in given} == given
