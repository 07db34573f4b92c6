"""The minimal pairs of the grammar test: they differ in what they should, and the accuracy is what it says."""

from __future__ import annotations

import math
import random
from collections import Counter

import pytest
from scipy.stats import binomtest

from bench.files.errors import UsageError
from bench.training import data, grammar
from bench.training.data import cache

PAIRS = grammar.pairs(60)
COUPLES = [pair for pair in PAIRS if pair.phenomenon in grammar.MIRRORED]

# phenomenon, good, bad: written by hand; each must be among all there are
EXAMPLES: list[tuple[str, str, str]] = [
    ("agreement", "The judges know the truth.", "The judges knows the truth."),
    ("agreement past a noun", "The women of the town need our help.", "The women of the town needs our help."),
    ("agreement past a clause", "The soldier who saw the men was free.", "The soldier who saw the men were free."),
    (
        "agreement after there",
        "There are two books in the house of the man.",
        "There is two books in the house of the man.",
    ),
    ("noun after determiner", "The officer found this letter.", "The officer found this letters."),
    ("noun after determiner and adjective", "The men saw many new roads.", "The men saw many new road."),
    ("determiner before noun", "The men saw those old houses.", "The men saw that old houses."),
    ("anaphor number", "The armies of the south defended themselves.", "The armies of the south defended itself."),
    ("anaphor gender", "The mother of the soldiers called herself.", "The mother of the soldiers called himself."),
    ("irregular forms", "The laws were soon written by the women.", "The laws were soon wrote by the women."),
    ("verb after auxiliary", "The judge must take the letter.", "The judge must taken the letter."),
    ("pronoun case", "In that year the worker saw them.", "In that year the worker saw they."),
    ("quantifiers", "The men of the city had too much money.", "The men of the city had too many money."),
    ("comparison", "The man is as brave as the woman.", "The man is as brave than the woman."),
    ("polarity ever", "No senator has ever seen the treaty.", "Some senator has ever seen the treaty."),
    ("polarity any", "The officers did not see any ships.", "The officers did also see any ships."),
]


def differing(pair: grammar.Pair) -> list[tuple[str, str]]:
    """The words in which the two sentences differ; all of them where the sentences are not equally long."""
    good, bad = pair.good.split(), pair.bad.split()
    if len(good) != len(bad):
        return [*zip(good, bad, strict=False), ("", "")]
    return [(g, b) for g, b in zip(good, bad, strict=True) if g != b]


def by_words(texts):
    """Scores a sentence by its words alone, each with a number of its own."""
    return [math.fsum(random.Random(word.lower().strip(".")).random() for word in text.split()) for text in texts]


def best(pairs):
    good = {pair.good for pair in pairs}
    return lambda texts: [0.0 if text in good else -1.0 for text in texts]


# -- the pairs


def test_two_sentences_of_a_pair_differ_in_one_word():
    assert all(len(differing(pair)) == 1 for pair in PAIRS)


@pytest.mark.parametrize("bad", ["He saw me.", "He saw me there.", "She found me.", "He me saw."])
def test_a_pair_that_differs_otherwise_is_noticed(bad):
    assert len(differing(grammar.Pair("", "He saw me.", bad))) != 1


def test_in_a_couple_the_right_word_of_one_is_the_wrong_word_of_the_other():
    for first, second in zip(COUPLES[::2], COUPLES[1::2], strict=True):
        (right, wrong), (other_right, other_wrong) = differing(first)[0], differing(second)[0]
        assert [w.strip(".") for w in (right, wrong)] == [w.strip(".") for w in (other_wrong, other_right)]


@pytest.mark.parametrize(("phenomenon", "good", "bad"), EXAMPLES)
def test_known_pairs_are_among_them(phenomenon, good, bad):
    texts = {**grammar.MIRRORED, **grammar.ONE_SIDED}[phenomenon]
    found = False
    for text in texts:
        total = math.prod(len(grammar.WORDS[words]) for words, _ in grammar._slots(text))
        for number in range(total):
            for side in (0, 1) if phenomenon in grammar.MIRRORED else (0,):
                if grammar._sentence(text, number, side, bad=False) == good:
                    found |= grammar._sentence(text, number, side, bad=True) == bad
            if found:
                return
    assert found


def test_every_phenomenon_has_an_example_and_its_pairs():
    assert [name for name, _, _ in EXAMPLES] == list(grammar.phenomena())
    assert Counter(pair.phenomenon for pair in PAIRS) == dict.fromkeys(grammar.phenomena(), 60)
    assert len(set(PAIRS)) == len(PAIRS)


def test_the_verb_agrees_with_the_subject_and_not_with_what_stands_between():
    singular = {word[0] for name in ("person", "thing", "body") for word in grammar.WORDS[name]}
    verbs = {form for name in ("verb", "be") for word in grammar.WORDS[name] for form in word}
    checked = 0
    for pair in PAIRS:
        if pair.phenomenon in ("agreement", "agreement past a noun", "agreement past a clause"):
            (right, wrong), subject = differing(pair)[0], pair.good.split()[1]
            assert {right, wrong} < verbs
            assert (right in {"is", "was", "has"} or (right.endswith("s"))) == (subject in singular)
            between = set(pair.good.split()[2:])
            if pair.phenomenon != "agreement":
                plural = {w[1] for n in ("person", "thing", "body") for w in grammar.WORDS[n]}
                assert between & (plural if subject in singular else singular)
            checked += 1
    assert checked == 180


def test_the_same_seed_gives_the_same_pairs_and_another_one_others():
    assert grammar.pairs(20) == grammar.pairs(20) != grammar.pairs(20, seed=1)


@pytest.mark.parametrize("count", [0, -2, 3])
def test_a_number_that_makes_no_couples_is_refused(count):
    with pytest.raises(UsageError, match=f"{count} of each phenomenon; pairs come in couples"):
        grammar.pairs(count)


def test_more_pairs_than_there_are_is_an_error():
    with pytest.raises(UsageError, match=r"100000000 of 'agreement', which has \d+"):
        grammar.pairs(100_000_000)
    assert len(grammar.pairs(900)) == 900 * len(grammar.phenomena())


# -- the accuracy


def test_a_scorer_that_is_right_gets_all_and_one_that_is_wrong_nothing():
    whole, each = grammar.accuracy(best(PAIRS), PAIRS)
    assert whole.share == 1 and whole.low > 0.99 and all(a.share == 1 and a.low > 0.9 for a in each.values())
    whole, _ = grammar.accuracy(lambda texts: [-s for s in best(PAIRS)(texts)], PAIRS)
    assert whole.share == 0 and whole.low == 0 and whole.high < 0.01


def test_a_scorer_of_single_words_gets_exactly_chance_where_there_is_a_mirror():
    _, each = grammar.accuracy(by_words, COUPLES)
    assert {a.share for a in each.values()} == {0.5}


def test_a_random_scorer_is_about_chance_within_its_interval():
    covered = total = 0
    for seed in range(40):
        noise = random.Random(seed)
        whole, each = grammar.accuracy(lambda texts: [noise.random() for _ in texts], PAIRS)  # noqa: B023
        assert abs(whole.share - grammar.CHANCE) < 0.1
        covered += sum(a.low <= grammar.CHANCE <= a.high for a in each.values())
        total += len(each)
    assert 0.92 < covered / total < 0.98  # of 95 %: three deviations of 640 draws are 2.6 %


def test_a_tie_counts_half():
    whole, _ = grammar.accuracy(lambda texts: [0.0] * len(texts), PAIRS)
    assert whole.share == 0.5 and whole.chance == 0.5


@pytest.mark.parametrize(("right", "count"), [(0, 20), (10, 20), (19, 20), (20, 20), (137, 200), (1, 2)])
def test_the_interval_is_wilsons(right, count):
    wanted = binomtest(right, count).proportion_ci(0.95, method="wilson")
    found = grammar.interval(right, count)
    assert (found.low, found.high) == pytest.approx((wanted.low, wanted.high), abs=1e-6)


@pytest.mark.parametrize(
    ("score", "words"),
    [
        (lambda texts: [0.0] * (len(texts) - 1), "scores for"),
        (lambda texts: [math.nan] * len(texts), "NaN"),
    ],
)
def test_scores_that_are_none_are_refused(score, words):
    with pytest.raises(ValueError, match=words):
        grammar.accuracy(score, PAIRS)


# -- the words


def test_words_that_a_text_lacks_are_named():
    known = " ".join(grammar.vocabulary() - {"treaty"}) + " "
    assert grammar.lacking([known * 5]) == ["treaty"]
    assert grammar.lacking([known * 5 + " Treaty" * 4]) == ["treaty"]
    assert grammar.lacking([known * 5, "TREATY, " * 5]) == []


def test_a_model_of_the_addresses_knows_the_words():
    if not cache.place("sotu").is_dir():
        pytest.skip("State of the Union is not here: python -m bench data fetch sotu")
    found = data.load("sotu")
    assert isinstance(found, data.Text)
    assert grammar.lacking(found.train, least=9) == []
