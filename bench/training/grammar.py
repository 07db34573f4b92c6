"""Minimal pairs: two sentences that differ in one word, of which one is grammatical; a model should prefer that one.

In the manner of BLiMP (Warstadt et al. 2020, arXiv:1912.00582), with templates and words of our own, so that they ship
with the code. The words are those a model trained on the State of the Union addresses has met often; `lacking` tells
which of them another corpus lacks.

Pairs come in mirrored couples: what is wrong in one sentence is right in the other ("the judge knows", "the judges
know"), so that a scorer that goes by the frequency of words alone gets exactly one of two. What licenses a negative
polarity item has no such mirror: there it may get more or less.
"""

from __future__ import annotations

import math
import random
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from bench.files.errors import UsageError

CHANCE = 0.5
Z = 1.959964  # of a normal distribution, 95 % lie within so many deviations
SEED = 0

Word = str | tuple[str, str]  # the same in both sentences of a couple, or its form in the first and in the second


def _words(text: str) -> tuple[Word, ...]:
    """`land law/laws` -> ("land", ("law", "laws")); `_` stands for a blank."""
    found = (word.replace("_", " ").partition("/") for word in text.split())
    return tuple((one, other) if slash else one for one, slash, other in found)


WORDS: dict[str, tuple[Word, ...]] = {
    "person": _words(
        "senator/senators soldier/soldiers farmer/farmers worker/workers minister/ministers officer/officers man/men "
        "woman/women child/children teacher/teachers leader/leaders student/students veteran/veterans member/members "
        "commander/commanders agent/agents judge/judges governor/governors citizen/citizens"
    ),
    "man": _words(
        "man/men soldier/soldiers farmer/farmers officer/officers senator/senators minister/ministers "
        "governor/governors judge/judges commander/commanders citizen/citizens"
    ),
    "body": _words(
        "nation/nations state/states army/armies court/courts committee/committees town/towns department/departments"
    ),
    "thing": _words(
        "law/laws treaty/treaties ship/ships report/reports book/books bill/bills house/houses river/rivers "
        "road/roads letter/letters question/questions plan/plans"
    ),
    "verb": _words("needs/need wants/want deserves/deserve has/have knows/know"),
    "good": _words("our_help our_support the_truth the_land more_money our_confidence this_protection"),
    "be": _words("is/are was/were"),
    "state": _words("ready right present strong free responsible satisfied important"),
    "kind": _words("new good great important public large old necessary small"),
    "past": _words("defended protected helped saw supported sent found called"),
    "place": _words("north south west union world city country house"),
    "some": _words("a/many one/two"),
    "number": _words("this/these that/those every/several each/many one/two"),
    "this": _words("this/these that/those"),
    "reflexive": _words("himself/themselves"),
    "itself": _words("itself/themselves"),
    "kin": _words("man/woman father/mother son/daughter husband/wife boy/girl brother/sister"),
    "gender": _words("himself/herself"),
    "done": _words(
        "took/taken gave/given saw/seen knew/known wrote/written chose/chosen began/begun drew/drawn broke/broken"
    ),
    "bare": _words(
        "take/taken give/given see/seen know/known write/written choose/chosen begin/begun draw/drawn break/broken"
    ),
    "will": _words("must/has can/had"),
    "he": _words("he/him they/them we/us"),
    "time": _words("year day war city country house"),
    "much": _words("many/much"),
    "mass": _words("ships/money laws/trade roads/labor treaties/land letters/water soldiers/food"),
    "so": _words("so too as very"),
    "than": _words("than/as"),
    "brave": _words("brave poor rich young careful useful honest strong free"),
    "no": _words("no/some no/the no/each no/that"),
    "seen": _words("seen known given taken written found sent"),
    "not": _words("not/also not/often not/indeed not/still"),
    "see": _words("see find need send want give take"),
}

# `{word}` takes the form of its own sentence, `{~word}` that of the other one; `[word]` is what the bad sentence has in
# the other form. `a | b`: the two sentences of a couple; otherwise one text serves both. `person2` is a second person.
MIRRORED: dict[str, tuple[str, ...]] = {
    "agreement": ("the {person} [verb] {good}.", "the {person} [be] {state}."),
    "agreement past a noun": (
        "the {person} of the {~body} [verb] {good}.",
        "the {person} near the {~thing} [be] {state}.",
    ),
    "agreement past a clause": (
        "the {person} who {past} the {~person2} [be] {state}.",
        "the {thing} that the {~person} {past} [be] {kind}.",
    ),
    "agreement after there": ("there [be] {some} {thing} in the house of the {~person}.",),
    "noun after determiner": ("the {person} {past} {number} [thing].",),
    "noun after determiner and adjective": ("the {person} {past} {number} {kind} [thing].",),
    "determiner before noun": ("the {person} {past} [this] {kind} {thing}.",),
    "anaphor number": (
        "the {man} of the {place} {past} [reflexive].",
        "the {body} of the {place} {past} [itself].",
    ),
    "anaphor gender": ("the {kin} of the {person} {past} [gender].",),
    "irregular forms": (
        "the {person} [done] the {thing}. | the {person} had [done] the {thing}.",
        "the {person} soon [done] the {thing}. | the {thing} were soon [done] by the {person}.",
    ),
    "verb after auxiliary": ("the {man} {will} [bare] the {thing}. | the {~man} {will} [bare] the {thing}.",),
    "pronoun case": ("in that {time} [he] {past} the {~person}. | in that {time} the {~person} {past} [he].",),
    "quantifiers": ("the {person} of the {place} had {so} [much] {mass}.",),
    "comparison": (
        "the {person} is more {brave} [than] the {person2}. | the {~person} is as {brave} [than] the {~person2}.",
    ),
}
# Without a mirror: one sentence of each text.
ONE_SIDED: dict[str, tuple[str, ...]] = {
    "polarity ever": ("[no] {person} has ever {seen} the {thing}.", "[no] {person} of the {place} has {seen} it yet."),
    "polarity any": ("the {~person} did [not] {see} any {~thing}.",),
}


@dataclass(frozen=True)
class Pair:
    """`good` and `bad` have the same words but one."""

    phenomenon: str
    good: str
    bad: str


@dataclass(frozen=True)
class Accuracy:
    """How often the good sentence was preferred, a tie counted half; 95 % lie from `low` to `high` (Wilson).

    The interval takes pairs for independent. They share words and templates, so it is rather too narrow.
    """

    right: float
    pairs: int
    low: float
    high: float
    chance: float = CHANCE

    @property
    def share(self) -> float:
        return self.right / self.pairs


def phenomena() -> tuple[str, ...]:
    return (*MIRRORED, *ONE_SIDED)


def pairs(count: int, seed: int = SEED) -> list[Pair]:
    """`count` different pairs of every phenomenon, the same for the same seed.

    Args:
        count: an even number, since most pairs come in couples.
    Raises:
        UsageError: count is odd, below 2, or more than a phenomenon has.
    """
    if count < 2 or count % 2:
        raise UsageError(f"grammar pairs: {count} of each phenomenon; pairs come in couples, so an even number from 2")
    chosen: list[Pair] = []
    for phenomenon, texts in {**MIRRORED, **ONE_SIDED}.items():
        sides = (0, 1) if phenomenon in MIRRORED else (0,)
        wanted = count // len(sides)
        every = [(text, number) for text in texts for number in _shares(text, texts, wanted, f"{seed} {phenomenon}")]
        if len(every) < wanted:
            raise UsageError(f"grammar pairs: {count} of {phenomenon!r}, which has {len(every) * len(sides)}")
        chosen += [
            Pair(phenomenon, _sentence(text, number, side, False), _sentence(text, number, side, True))
            for text, number in every[:wanted]
            for side in sides
        ]
    return chosen


def accuracy(
    score: Callable[[Sequence[str]], Sequence[float]], pairs: Sequence[Pair]
) -> tuple[Accuracy, dict[str, Accuracy]]:
    """Over all pairs, and by phenomenon.

    Args:
        score: log-probabilities of whole sentences, in any unit; asked once, for every sentence.
    Raises:
        ValueError: no pairs, another number of scores than of sentences, or a score that is no number.
    """
    texts = [text for pair in pairs for text in (pair.good, pair.bad)]
    scores = [float(value) for value in score(texts)]
    if not pairs or len(scores) != len(texts):
        raise ValueError(f"grammar: {len(scores)} scores for {len(texts)} sentences")
    if any(math.isnan(value) for value in scores):
        raise ValueError("grammar: a score is NaN: the model has diverged")
    right: dict[str, float] = defaultdict(float)
    for pair, good, bad in zip(pairs, scores[::2], scores[1::2], strict=True):
        right[pair.phenomenon] += 1.0 if good > bad else 0.5 if good == bad else 0.0
    counts = Counter(pair.phenomenon for pair in pairs)
    by_phenomenon = {name: interval(right[name], count) for name, count in counts.items()}
    return interval(sum(right.values()), len(pairs)), by_phenomenon


def interval(right: float, count: int) -> Accuracy:
    """Wilson's interval for a share, 95 %: it stays within 0 and 1 and is sensible for few pairs (Wilson 1927)."""
    share, more = right / count, Z * Z / count
    middle = (share + more / 2) / (1 + more)
    half = Z / (1 + more) * math.sqrt(share * (1 - share) / count + more / (4 * count))
    return Accuracy(right, count, max(0.0, middle - half), min(1.0, middle + half))


def vocabulary() -> set[str]:
    """Every word of every sentence there can be, in small letters."""
    texts = [text for group in (MIRRORED, ONE_SIDED) for several in group.values() for text in several]
    fixed = " ".join(re.sub(r"[{\[]~?\w+[}\]]", " ", text) for text in texts)
    slots = {slot for text in texts for slot, _ in _slots(text)}
    forms = " ".join(form for slot in slots for word in WORDS[slot] for form in _both(word))
    return set(re.findall(r"[a-z]+", f"{fixed} {forms}"))


def lacking(texts: Iterable[str], least: int = 5) -> list[str]:
    """Words of the pairs that come fewer than `least` times in the texts."""
    counts = Counter(word for text in texts for word in re.findall(r"[a-z]+", text.lower()))
    return sorted(word for word in vocabulary() if counts[word] < least)


# -- how a sentence is made


def _shares(text: str, texts: Sequence[str], wanted: int, seed: str) -> list[int]:
    """Choices of words for one of several texts, each with its part of `wanted`; the first has what is left over."""
    total = math.prod(len(WORDS[slot]) for slot, _ in _slots(text))
    part = wanted // len(texts) + (wanted % len(texts) if text == texts[0] else 0)
    return random.Random(f"{seed} {text}").sample(range(total), min(part, total))


def _slots(text: str) -> Iterator[tuple[str, str]]:
    """The distinct slots of a text as (list of words, slot): `person2` takes a person too."""
    for slot in dict.fromkeys(re.findall(r"[{\[]~?(\w+)[}\]]", text)):
        yield slot.rstrip("2"), slot


def _sentence(text: str, number: int, side: int, bad: bool) -> str:
    """The sentence of the `number`-th choice of words, of the first or second side of its couple."""
    chosen: dict[str, tuple[str, str]] = {}
    for words, slot in _slots(text):
        number, choice = divmod(number, len(WORDS[words]))
        chosen[slot] = _both(WORDS[words][choice])

    def form(match: re.Match[str]) -> str:
        opposite = match[1] == "~" or (match[3] is not None and bad)
        return chosen[match[2] or match[3]][side ^ opposite]

    sides = text.split(" | ")
    made = re.sub(r"\{(~?)(\w+)\}|\[(\w+)\]", form, sides[side % len(sides)])
    return made[0].upper() + made[1:]


def _both(word: Word) -> tuple[str, str]:
    return (word, word) if isinstance(word, str) else word
