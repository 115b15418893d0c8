"""Synthetic chat about everyday things, the model itself, and small made-up passages."""

from random import Random

from lexicon import (
    CATEGORIES,
    COLOURS,
    DAYS,
    FACTS,
    MATERIALS,
    MONTHS,
    NAMES,
    OBJECTS,
    OPPOSITES,
    PAST,
    PLACES,
    PLURALS,
)
from turn import Turn, listing, phrase

_ABOUT_ME = (
    (("Who are you?", "What are you?", "Introduce yourself.", "Tell me about yourself."),
     ("I am Sprout, a small model made to be fine-tuned.", "I am Sprout, a small language model.")),
    (("What is your name?", "What's your name?", "Do you have a name?", "How are you called?"),
     ("My name is Sprout.", "I am Sprout.")),
    (("Are you a human?", "Are you a person?", "Are you real?"),
     ("No, I am Sprout, a small model.",)),
    (("What can you do?", "How can you help me?", "What are you good at?"),
     ("I am Sprout. I can do small sums, work with words and answer simple questions.",)),
    (("How big are you?", "Are you a large model?"),
     ("I am Sprout, a very small model with about five million parameters.",)),
)  # fmt: skip
_GREETINGS = (
    (("Hello", "Hello!", "Hi", "Hi!", "Hi there!", "Hey", "Hello Sprout!", "Good day!"),
     ("Hello! How can I help you?", "Hello! What can I do for you?", "Hi! How can I help?"),
     "help|do"),
    (("Good morning!", "Good morning"), ("Good morning! How can I help you?",), "Good morning"),
    (("Good evening!", "Good evening"), ("Good evening! How can I help you?",), "Good evening"),
    (("Thank you!", "Thanks!", "Thanks a lot.", "Thank you very much."),
     ("You are welcome!", "You are welcome."), "welcome"),
    (("Bye!", "Goodbye!", "See you later.", "Goodbye"), ("Goodbye!", "Goodbye, see you soon!"),
     "Goodbye"),
    (("How are you?", "How are you today?", "How do you do?"),
     ("I am fine, thank you!", "I am fine, thank you. How can I help you?"), "fine"),
)  # fmt: skip


def article(noun: str) -> str:
    """Put a or an before a noun."""
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def about_me(rng: Random) -> Turn:
    """Answer a question about the model."""
    questions, replies = rng.choice(_ABOUT_ME)
    return Turn(rng.choice(questions), rng.choice(replies), "Sprout")


def greeting(rng: Random) -> Turn:
    """Answer a greeting, thanks or goodbye."""
    questions, replies, answer = rng.choice(_GREETINGS)
    reply = rng.choice(replies)
    return Turn(rng.choice(questions), reply, next(a for a in answer.split("|") if a in reply))


def fact(rng: Random) -> Turn:
    """Answer a simple question of general knowledge."""
    question, answer, sentence = rng.choice(FACTS)
    short = answer[0].upper() + answer[1:]
    reply = sentence if rng.random() < 0.7 else f"{short}."
    return Turn(question, reply, answer if answer in reply else short)


def calendar(rng: Random) -> Turn:
    """Say which day or month comes before or after another."""
    names, kind = rng.choice(((DAYS, "day"), (MONTHS, "month")))
    index, step = rng.randrange(len(names)), rng.choice((1, -1))
    answer = names[(index + step) % len(names)]
    asked = ("What {k} comes {w} {n}?", "Which {k} is {w} {n}?", "Name the {k} {w} {n}.")
    side = "after" if step == 1 else "before"
    replies = ("{a}", "{a} comes {w} {n}.", "{a}.")
    values = {"k": kind, "w": side, "n": names[index], "a": answer}
    return Turn(phrase(rng, asked, **values), phrase(rng, replies, **values), answer)


def opposite(rng: Random) -> Turn:
    """Name the opposite of a word."""
    word, answer = rng.choice(tuple(OPPOSITES.items()))
    asked = ("What is the opposite of {w}?", "Opposite of {w}?", "Give the opposite of {w}.")
    replies = ("{a}", "The opposite of {w} is {a}.")
    return Turn(phrase(rng, asked, w=word), phrase(rng, replies, w=word, a=answer), answer)


def plural(rng: Random) -> Turn:
    """Name the plural of a noun."""
    word, answer = rng.choice(tuple(PLURALS.items()))
    asked = ("What is the plural of {w}?", "Plural of {w}?", "One {w}, two what?")
    replies = ("{a}", "The plural of {w} is {a}.")
    return Turn(phrase(rng, asked, w=word), phrase(rng, replies, w=word, a=answer), answer)


def past(rng: Random) -> Turn:
    """Name the past tense of a verb."""
    word, answer = rng.choice(tuple(PAST.items()))
    asked = ("What is the past tense of {w}?", "Past tense of {w}?", "Put {w} in the past tense.")
    replies = ("{a}", "The past tense of {w} is {a}.")
    return Turn(phrase(rng, asked, w=word), phrase(rng, replies, w=word, a=answer), answer)


def category(rng: Random) -> Turn:
    """Say what kind of thing something is."""
    kind = rng.choice(tuple(CATEGORIES))
    thing = rng.choice(CATEGORIES[kind])
    if rng.random() < 0.5:
        asked = ("What is {t}?", "What kind of thing is {t}?", "Is {t} {x} or {y}?")
        other = rng.choice([name for name in CATEGORIES if name != kind])
        first, second = rng.sample((kind, other), 2)
        question = phrase(rng, asked, t=article(thing), x=article(first), y=article(second))
        return Turn(question, f"{article(thing).capitalize()} is {article(kind)}.", kind)
    probe = rng.choice((kind, rng.choice(tuple(CATEGORIES))))
    answer = "Yes" if thing in CATEGORIES[probe] else "No"
    question = f"Is {article(thing)} {article(probe)}?"
    replies = ("{a}.", "{a}, {t} is {n}{p}.")
    reply = phrase(
        rng,
        replies,
        a=answer,
        t=article(thing),
        p=article(probe),
        n="" if answer == "Yes" else "not ",
    )
    return Turn(question, reply, answer)


def odd_one_out(rng: Random) -> Turn:
    """Find the word that belongs to another category."""
    kind, other = rng.sample(tuple(CATEGORIES), 2)
    stranger = rng.choice(CATEGORIES[other])
    items = [*rng.sample([w for w in CATEGORIES[kind] if w != stranger], 3), stranger]
    rng.shuffle(items)
    asked = ("Which word does not belong: {t}?", "Find the odd one out: {t}.")
    return Turn(phrase(rng, asked, t=", ".join(items)), stranger, stranger)


def _owners(rng: Random) -> Turn:
    names, things = rng.sample(NAMES, 3), rng.sample(OBJECTS, 3)
    count = rng.randint(2, 3)
    colours = [rng.choice(COLOURS) for _ in things]
    facts = [f"{n} has {article(c)} {t}." for n, c, t in zip(names, colours, things, strict=True)]
    index = rng.randrange(count)
    name, thing, colour = names[index], things[index], colours[index]
    question, reply, answer = rng.choice(
        (
            (f"Who has the {thing}?", f"{name} has the {thing}.", name),
            (f"What does {name} have?", f"{name} has {article(colour)} {thing}.", thing),
            (f"What colour is the {thing}?", f"The {thing} is {colour}.", colour),
        )
    )
    return Turn(f"{' '.join(facts[:count])} {question}", reply, answer)


def _places(rng: Random) -> Turn:
    names, places = rng.sample(NAMES, 3), rng.sample(PLACES, 3)
    verbs = ("went to", "is in", "walked to", "works in")
    facts = [f"{n} {rng.choice(verbs)} the {p}." for n, p in zip(names, places, strict=True)]
    index, count = rng.randrange(2), rng.randint(2, 3)
    name, place = names[index], places[index]
    question, reply, answer = rng.choice(
        (
            (f"Where is {name}?", f"{name} is in the {place}.", place),
            (f"Who is in the {place}?", f"{name} is in the {place}.", name),
        )
    )
    return Turn(f"{' '.join(facts[:count])} {question}", reply, answer)


def _story(rng: Random) -> Turn:
    name, friend = rng.sample(NAMES, 2)
    thing, place, day = rng.choice(OBJECTS), rng.choice(PLACES), rng.choice(DAYS)
    material, colour = rng.choice(MATERIALS), rng.choice(COLOURS)
    what, where = f"{article(colour)} {thing}", f"the {place}"
    text = rng.choice(
        (
            f"On {day} {name} went to {where} with {friend}. They found {what} made of {material}.",
            f"{name} and {friend} were in {where} on {day}. There they saw {what} of {material}.",
        )
    )
    question, reply, answer = rng.choice(
        (
            ("When was it?", f"It was on {day}.", day),
            ("Where were they?", f"They were in the {place}.", place),
            ("What did they find?", f"They found {article(colour)} {thing}.", thing),
            (f"What was the {thing} made of?", f"The {thing} was made of {material}.", material),
            (f"What colour was the {thing}?", f"The {thing} was {colour}.", colour),
            (f"Who was with {name}?", f"{friend} was with {name}.", friend),
        )
    )
    return Turn(f"{text} {question}", reply, answer)


def passage(rng: Random) -> Turn:
    """Answer a question about a small made-up passage, in a sentence or in a word."""
    turn = rng.choice((_owners, _places, _story))(rng)
    if rng.random() < 0.25:
        return Turn(f"{turn.question} Answer with one word.", turn.answer, turn.answer)
    return turn


def sentence(rng: Random) -> Turn:
    """Write one sentence with a given word."""
    name, thing, place = rng.choice(NAMES), rng.choice(OBJECTS), rng.choice(PLACES)
    colour = rng.choice(COLOURS)
    reply = rng.choice(
        (
            f"{name} has {article(colour)} {thing} in the {place}.",
            f"There is {article(thing)} in the {place}.",
            f"{name} took the {colour} {thing} to the {place}.",
            f"The {thing} of {name} is {colour}.",
        )
    )
    asked = (
        "Write a sentence with the word {w}.",
        "Make a sentence with {w}.",
        "Use {w} in a sentence.",
    )
    return Turn(phrase(rng, asked, w=thing), reply, thing)


def story(rng: Random) -> Turn:
    """Tell a very short story about somebody."""
    name, friend = rng.sample(NAMES, 2)
    thing, place, other = rng.choice(OBJECTS), *rng.sample(PLACES, 2)
    animal, colour = rng.choice(CATEGORIES["animal"]), rng.choice(COLOURS)
    reply = " ".join(
        (
            f"One day {name} went to the {place} with {friend}.",
            rng.choice(
                (
                    f"There they met {article(colour)} {animal}.",
                    f"They saw {article(animal)} near the {other}.",
                )
            ),
            rng.choice(
                (
                    f"The {animal} had lost {article(thing)}.",
                    f"The {animal} was looking for {article(thing)}.",
                )
            ),
            rng.choice(
                (
                    f"{friend} found the {thing} in the {other}.",
                    f"{name} looked for the {thing} and found it in the {other}.",
                )
            ),
            rng.choice(
                (
                    "Everybody was happy.",
                    f"The {animal} was very happy.",
                    "Then they all went home.",
                )
            ),
        )
    )
    asked = ("Tell me a story about {n}.", "Write a short story about {n}.", "Story about {n}?")
    return Turn(phrase(rng, asked, n=name), reply, name)


def enumerate_names(rng: Random) -> Turn:
    """List some days, months, colours or members of a category."""
    kind = rng.choice(("animals", "fruits", "vegetables", "colours"))
    pool = COLOURS if kind == "colours" else CATEGORIES[kind[:-1]]
    items = rng.sample(pool, rng.randint(2, 4))
    question = phrase(
        rng,
        ("Name {n} {k}.", "List {n} {k}.", "Tell me {n} {k}."),
        n=("two", "three", "four")[len(items) - 2],
        k=kind,
    )
    return Turn(question, f"{listing(items).capitalize()}.", items[-1])
