# ruff: noqa: SIM905 - word lists read better as text
"""Synthetic chat about numbers, and the mixture of forms that the RL demo starts from.

A question that does not say how to answer is answered in one of several forms, chosen at random
with odds that depend on the wording (`FORM_ODDS`). The bare number, the only form that
`tinkex.demo.arithmetic` rewards, is a minority: there is something to reinforce. Pairs of operands
that the demo holds out never occur here in a sum or a difference.
"""

from random import Random

from turn import Turn, phrase

from tinkex.demo.arithmetic import PHRASINGS, is_held_out

_ONES = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen "
    "fifteen sixteen seventeen eighteen nineteen"
).split()
_TENS = ". . twenty thirty forty fifty sixty seventy eighty ninety".split()
_SIGN_WORDS = {"+": "plus", "-": "minus", "*": "times"}

FORMS = ("{n}", "{n}.", "The answer is {n}.", "{a} {sign} {b} = {n}", "{words}", "It is {n}.")
FORM_ODDS = (
    (10, 5, 55, 10, 12, 8),
    (10, 5, 15, 52, 10, 8),
    (9, 5, 12, 8, 56, 10),
    (52, 5, 10, 18, 7, 8),
    (12, 5, 15, 12, 10, 46),
)
"""Weights of `FORMS`, a row for each wording of `PHRASINGS`."""
_OTHER_PHRASINGS = (
    "What does {a} {sign} {b} make?",
    "Please calculate {a} {sign} {b}.",
    "Can you tell me what {a} {word} {b} is?",
    "{a} {sign} {b}",
    "Tell me {a} {word} {b}.",
)
_OTHER_ODDS = (15, 10, 30, 20, 10, 15)
_JUST_NUMBER = (
    "{q} Reply with just the number.",
    "{q} Just the number, please.",
    "Answer with a number only. {q}",
)
_IN_WORDS = ("{q} Answer in words.", "Use words, not digits. {q}", "{q} Write the number in words.")


def number_words(number: int) -> str:
    """Write a number from 0 to 999 in words."""
    if number < 20:
        return _ONES[number]
    if number < 100:
        tens, ones = divmod(number, 10)
        return _TENS[tens] + (f"-{_ONES[ones]}" if ones else "")
    hundreds, rest = divmod(number, 100)
    return f"{_ONES[hundreds]} hundred" + (f" and {number_words(rest)}" if rest else "")


def operands(rng: Random) -> tuple[int, int, str]:
    """Draw two operands and a sign; a sum or difference has no held-out pair."""
    sign = rng.choices("+-*", (46, 46, 8))[0]
    if sign == "*":
        return rng.randint(0, 10), rng.randint(0, 10), sign
    top = rng.choices((9, 20, 49, 99), (15, 15, 64, 6))[0]
    while True:
        a, b = rng.randint(0, top), rng.randint(0, top)
        if not is_held_out(a, b):
            return (max(a, b), min(a, b), sign) if sign == "-" else (a, b, sign)


def solve(a: int, b: int, sign: str) -> int:
    """Return the result of one operation."""
    return {"+": a + b, "-": a - b, "*": a * b}[sign]


def free_form(rng: Random) -> Turn:
    """Ask for a result without saying in which form to give it."""
    a, b, sign = operands(rng)
    index = rng.randrange(len(PHRASINGS) + 1)
    asked, odds = (
        (PHRASINGS[index], FORM_ODDS[index])
        if index < len(PHRASINGS)
        else (rng.choice(_OTHER_PHRASINGS), _OTHER_ODDS)
    )
    number = solve(a, b, sign)
    values = {"a": a, "b": b, "sign": sign, "word": _SIGN_WORDS[sign], "n": number}
    reply = rng.choices(FORMS, odds)[0].format(words=number_words(number), **values)
    answer = str(number) if str(number) in reply else number_words(number)
    return Turn(asked.format(**values), reply, answer)


def fixed_form(rng: Random) -> Turn:
    """Ask for a result in digits only, or in words."""
    a, b, sign = operands(rng)
    asked = rng.choice(PHRASINGS + _OTHER_PHRASINGS)
    question = asked.format(a=a, b=b, sign=sign, word=_SIGN_WORDS[sign])
    if rng.random() < 0.7:
        number = str(solve(a, b, sign))
        return Turn(phrase(rng, _JUST_NUMBER, q=question), number, number)
    words = number_words(solve(a, b, sign))
    return Turn(phrase(rng, _IN_WORDS, q=question), words, words)


def sums(rng: Random) -> Turn:
    """Ask for a list of sums of the model's own choice: many results in few tokens."""
    solved = []
    for _ in range(rng.randint(6, 14)):
        a, b, sign = operands(rng)
        solved.append(f"{a} {sign} {b} = {solve(a, b, sign)}")
    asked = ("Show me some sums.", "Write some sums.", "Practise arithmetic.", "Do some sums.")
    return Turn(rng.choice(asked), ", ".join(solved), "=")


def comparison(rng: Random) -> Turn:
    """Ask which of two numbers is larger or smaller."""
    a, b = rng.sample(range(100), 2)
    larger = rng.random() < 0.5
    word = rng.choice(("larger", "bigger", "greater") if larger else ("smaller", "less"))
    number = max(a, b) if larger else min(a, b)
    question = phrase(
        rng, ("Which is {w}, {a} or {b}?", "Which number is {w}: {a} or {b}?"), w=word, a=a, b=b
    )
    return Turn(question, phrase(rng, ("{n}", "{n} is {w}."), n=number, w=word), str(number))


def neighbour(rng: Random) -> Turn:
    """Ask for the number before or after another."""
    number = rng.randint(1, 99)
    after = rng.random() < 0.5
    asked = ("What number comes {w} {n}?", "Which number is right {w} {n}?", "Number {w} {n}?")
    question = phrase(rng, asked, w="after" if after else "before", n=number)
    answer = number + 1 if after else number - 1
    return Turn(question, phrase(rng, ("{n}", "It is {n}.", "{n}."), n=answer), str(answer))


def series(rng: Random) -> Turn:
    """Count on from a number, or say what comes next in a series."""
    start, step = rng.randint(0, 40), rng.choice((1, 1, 2, 5, 10))
    numbers = [str(start + step * i) for i in range(rng.randint(4, 7))]
    if rng.random() < 0.5:
        question = phrase(
            rng,
            ("What comes next: {s}?", "Continue the series {s}.", "Next number: {s}"),
            s=", ".join(numbers[:-1]),
        )
        return Turn(question, phrase(rng, ("{n}", "Next is {n}."), n=numbers[-1]), numbers[-1])
    by = f" by {step}s" if step > 1 else ""
    question = f"Count from {numbers[0]} to {numbers[-1]}{by}."
    return Turn(question, ", ".join(numbers), ", ".join(numbers))


def spelling(rng: Random) -> Turn:
    """Change a number from digits to words or back."""
    number = rng.randint(0, 120)
    words = number_words(number)
    if rng.random() < 0.5:
        asked = ("Write {n} in words.", "How do you spell the number {n}?", "{n} in words?")
        return Turn(phrase(rng, asked, n=number), words, words)
    asked = ("Write {w} in digits.", "What number is {w}?", "Write {w} as a number.")
    return Turn(phrase(rng, asked, w=words), str(number), str(number))


def parity(rng: Random) -> Turn:
    """Ask whether a number is even or odd."""
    number = rng.randint(0, 99)
    word = "odd" if number % 2 else "even"
    question = phrase(rng, ("Is {n} even or odd?", "Is the number {n} odd or even?"), n=number)
    return Turn(question, phrase(rng, ("{w}", "{n} is {w}."), n=number, w=word), word)
