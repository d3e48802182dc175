r"""Polish inflection as tasks: a noun or an adjective, and a case and number that it is to be put in.

Words are ours; their forms are those of the dictionary SGJP, which comes with the package `morfeusz2` (BSD). Asked is
only what has a single right answer, other than the word itself: where any reading of the word, an old or rare one too,
allows a second form, the question is left out.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from random import Random
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from morfeusz2 import Morfeusz

NOUNS = """
dom stół okno książka ryba szkoła miasto rzeka góra las pole most kwiat drzewo liść jabłko chleb masło mleko woda
herbata kawa zupa obiad kolacja śniadanie krzesło łóżko szafa lampa ściana sufit podłoga drzwi kuchnia łazienka
ogród ulica plac rynek kościół zamek wieża pałac muzeum teatr kino biblioteka sklep apteka szpital fabryka biuro
bank poczta samochód pociąg autobus tramwaj rower samolot statek łódź koło silnik droga podróż walizka mapa bilet
dworzec lotnisko nauczyciel lekarz kucharz piekarz malarz pisarz aktor rolnik żołnierz kierowca sędzia kobieta
siostra babcia ciotka córka matka przyjaciel sąsiad gość kolega koleżanka dziecko chłopiec dziewczyna człowiek ptak
koń krowa owca świnia kura gęś kaczka wilk lis niedźwiedź zając wiewiórka mysz żaba pszczoła mrówka motyl pająk
słońce księżyc gwiazda chmura grzmot śnieg wiatr burza mróz wiosna lato jesień zima poniedziałek środa sobota
niedziela godzina minuta tydzień miesiąc rok głowa ręka noga ramię palec serce nos włos twarz szyja kolano język
słowo zdanie pytanie odpowiedź zadanie liczba lekcja zeszyt ołówek pióro kreda tablica obraz muzyka piosenka taniec
film gazeta list telefon komputer klucz nóż widelec łyżka talerz kubek garnek butelka worek koszyk pudełko skrzynia
kamień piasek żelazo złoto srebro drewno szkło papier
""".split()
ADJECTIVES = """
zielony czerwony niebieski żółty czarny biały szary nowy stary młody duży mały wysoki niski długi krótki szeroki
wąski głęboki płytki ciężki lekki twardy miękki ciepły zimny gorący suchy mokry czysty brudny dobry zły mądry głupi
wesoły smutny cichy głośny szybki wolny drogi tani bogaty biedny zdrowy chory silny słaby polski leśny morski górski
drewniany
""".split()

NUMBERS = {"sg": "liczby pojedynczej", "pl": "liczby mnogiej"}
CASES = {
    "nom": "mianownik",
    "gen": "dopełniacz",
    "dat": "celownik",
    "acc": "biernik",
    "inst": "narzędnik",
    "loc": "miejscownik",
}
GENDERS = {
    ("sg", "f"): "rodzaju żeńskiego",
    ("sg", "n"): "rodzaju nijakiego",
    ("pl", "m1"): "rodzaju męskoosobowego",
    ("pl", "f"): "rodzaju niemęskoosobowego",
}
"""Of adjectives, by the number and a gender of the dictionary that stands for it."""


def questions(random: Random) -> list[tuple[str, str]]:
    """Questions and their answers, in an order that `random` gives."""
    found = dict((*_of_nouns(), *_of_adjectives()))
    return random.sample(list(found.items()), len(found))


def _of_nouns() -> Iterator[tuple[str, str]]:
    for word in NOUNS:
        forms = defaultdict(set)
        for form, number, cases, *_ in _tagged(word, ("subst", "depr")):
            for case in cases.split("."):
                forms[number, case].add(form)
        for (number, case), each in forms.items():
            if case in CASES and (answer := _only(each, word)):
                yield f"Podaj {CASES[case]} {NUMBERS[number]} rzeczownika „{word}”.", answer


def _of_adjectives() -> Iterator[tuple[str, str]]:
    for word in ADJECTIVES:
        forms = defaultdict(set)
        for form, number, cases, genders, degree, *_ in _tagged(word, ("adj",)):
            for case in cases.split(".") if degree == "pos" else ():
                for gender in genders.split("."):
                    forms[number, case, gender].add(form)
        for (number, case, gender), each in forms.items():
            if case in CASES and (number, gender) in GENDERS and (answer := _only(each, word)):
                asked = f"{CASES[case]} {NUMBERS[number]} {GENDERS[number, gender]}"
                yield f"Podaj {asked} przymiotnika „{word}”.", answer


def _only(forms: set[str], word: str) -> str:
    """The one form there is, if it is not the word itself; otherwise nothing."""
    return "" if len(forms) > 1 or word in forms else next(iter(forms))


def _tagged(word: str, kinds: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    """Every form of the common words of this name and kind, with number, cases and what else its tag says."""
    for form, _, tag, names, _ in _dictionary().generate(word):
        kind, *rest = tag.split(":")
        if kind in kinds and (not names or "nazwa_pospolita" in names):
            yield form, *rest


def version() -> str:
    """Of the dictionary."""
    return _dictionary().dict_id()


@cache
def _dictionary() -> Morfeusz:
    from morfeusz2 import Morfeusz  # here: loading it takes a while, and few runs ask

    return Morfeusz(analyse=False)
