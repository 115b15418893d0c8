# ruff: noqa: SIM905 - word lists read better as text
"""Word lists of the synthetic chat data. English only: French is what the supervised demo adds."""

NAMES = tuple(
    "Anna Ben Carla David Emma Felix Grace Henry Ivy Jack Kate Leo Mia Noah Olga Paul Rosa Sam "
    "Tina Victor Wendy Zoe Adam Bella Daniel Ella Frank Hanna Ian Julia Kevin Lucy Martin Nora "
    "Oscar Peter Sara Tom".split()
)
COLOURS = tuple("red blue green yellow black white brown pink purple orange grey".split())
DAYS = tuple("Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split())
MONTHS = tuple(
    "January February March April May June July August September October November December".split()
)
CATEGORIES = {
    "animal": tuple(
        "dog cat horse cow pig sheep goat lion tiger bear wolf fox rabbit mouse duck hen bird "
        "fish frog snake monkey elephant camel bee ant whale".split()
    ),
    "fruit": tuple("apple pear banana orange lemon cherry grape peach plum melon mango".split()),
    "vegetable": tuple("carrot potato onion bean pea cabbage leek tomato pepper corn".split()),
    "tool": tuple("hammer saw drill spade rake knife axe brush ladder pump".split()),
    "piece of furniture": tuple("table chair bed desk sofa shelf stool bench".split()),
    "vehicle": tuple("car bus train boat ship bike truck plane tram taxi".split()),
    "piece of clothing": tuple("shirt coat hat sock shoe glove dress skirt scarf belt".split()),
    "drink": tuple("water milk tea coffee juice".split()),
}
OBJECTS = tuple(
    "ball kite book lamp cup box key bag pen stone ring coin drum map bell rope clock doll flag "
    "basket bottle candle mirror pillow letter ticket guitar puzzle spoon".split()
)
PLACES = tuple(
    "kitchen garden school park library station market forest beach office shop barn museum "
    "hospital attic cellar village harbour castle bakery".split()
)
MATERIALS = tuple("wood glass stone paper metal wool leather clay".split())
OPPOSITES = {
    "big": "small", "hot": "cold", "up": "down", "left": "right", "open": "closed", "day": "night",
    "black": "white", "fast": "slow", "old": "new", "happy": "sad", "full": "empty", "high": "low",
    "long": "short", "wet": "dry", "hard": "soft", "early": "late", "first": "last", "in": "out",
    "rich": "poor", "strong": "weak", "light": "dark", "loud": "quiet", "near": "far",
    "clean": "dirty", "true": "false", "win": "lose", "start": "stop", "push": "pull",
    "yes": "no", "good": "bad", "thick": "thin", "wide": "narrow", "young": "old", "love": "hate",
    "buy": "sell", "give": "take", "above": "below", "inside": "outside", "always": "never",
}  # fmt: skip
PLURALS = {
    "cat": "cats", "dog": "dogs", "house": "houses", "box": "boxes", "child": "children",
    "man": "men", "woman": "women", "foot": "feet", "tooth": "teeth", "mouse": "mice",
    "sheep": "sheep", "fish": "fish", "baby": "babies", "city": "cities", "leaf": "leaves",
    "knife": "knives", "bus": "buses", "glass": "glasses", "apple": "apples", "tree": "trees",
    "book": "books", "car": "cars", "bird": "birds", "star": "stars", "story": "stories",
    "party": "parties", "wolf": "wolves", "goose": "geese", "potato": "potatoes",
    "watch": "watches",
    "dish": "dishes", "key": "keys", "toy": "toys", "day": "days", "flower": "flowers",
    "lamp": "lamps", "chair": "chairs", "fox": "foxes", "brush": "brushes", "person": "people",
}  # fmt: skip
PAST = {
    "go": "went", "see": "saw", "eat": "ate", "run": "ran", "take": "took", "give": "gave",
    "write": "wrote", "sing": "sang", "swim": "swam", "come": "came", "make": "made",
    "find": "found", "buy": "bought", "bring": "brought", "think": "thought", "sleep": "slept",
    "keep": "kept", "drink": "drank", "drive": "drove", "speak": "spoke", "walk": "walked",
    "play": "played", "jump": "jumped", "look": "looked", "help": "helped", "ask": "asked",
    "open": "opened", "begin": "began", "know": "knew", "fly": "flew", "win": "won",
    "sit": "sat", "stand": "stood", "tell": "told", "say": "said", "hear": "heard",
}  # fmt: skip
FACTS = (
    ("How many days are in a week?", "seven", "There are seven days in a week."),
    ("How many months are in a year?", "twelve", "There are twelve months in a year."),
    ("How many hours are in a day?", "24", "There are 24 hours in a day."),
    ("How many minutes are in an hour?", "60", "There are 60 minutes in an hour."),
    ("How many seconds are in a minute?", "60", "There are 60 seconds in a minute."),
    ("How many legs does a spider have?", "eight", "A spider has eight legs."),
    ("How many legs does a dog have?", "four", "A dog has four legs."),
    ("How many legs does a bird have?", "two", "A bird has two legs."),
    ("How many sides does a triangle have?", "three", "A triangle has three sides."),
    ("How many sides does a square have?", "four", "A square has four sides."),
    ("What colour is the sky?", "blue", "The sky is blue."),
    ("What colour is grass?", "green", "Grass is green."),
    ("What colour is snow?", "white", "Snow is white."),
    ("What colour is a banana?", "yellow", "A banana is yellow."),
    ("What colour is coal?", "black", "Coal is black."),
    ("What is the first letter of the alphabet?", "A", "The first letter of the alphabet is A."),
    ("What is the last letter of the alphabet?", "Z", "The last letter of the alphabet is Z."),
    ("What do bees make?", "honey", "Bees make honey."),
    ("What do cows give us?", "milk", "Cows give us milk."),
    ("What is frozen water called?", "ice", "Frozen water is called ice."),
    ("What comes after winter?", "spring", "Spring comes after winter."),
    ("What comes after summer?", "autumn", "Autumn comes after summer."),
    ("Which planet do we live on?", "Earth", "We live on the planet Earth."),
    ("What do we use to see?", "eyes", "We use our eyes to see."),
    ("What do we use to hear?", "ears", "We use our ears to hear."),
    ("Where does the sun rise?", "east", "The sun rises in the east."),
    ("Where does the sun set?", "west", "The sun sets in the west."),
    ("What falls from clouds?", "rain", "Rain falls from clouds."),
    ("What is a baby dog called?", "puppy", "A baby dog is called a puppy."),
    ("What is a baby cat called?", "kitten", "A baby cat is called a kitten."),
)
SHORT_WORDS = tuple(
    "sun moon star tree leaf rain snow wind fire rock sand lake hill road door wall roof farm "
    "ship boat fish bird frog wolf bear lion duck goat milk salt cake soup rice corn bean pear "
    "plum book page word song drum bell ring coin lamp desk sofa bed cup mug pan pot jar box bag "
    "hat coat shoe sock belt hand foot head nose ear arm leg toe red blue pink gold dark soft "
    "warm cold fast slow big tall wide deep good kind calm wise run jump walk swim sing read "
    "play help find make give take hold open look stop turn river green house water plant bread "
    "table chair clock horse sheep tiger happy quiet light music stone cloud apple lemon grape "
    "peach mango train truck plane ocean beach field grass flower garden window yellow orange "
    "purple silver winter summer spring autumn monkey rabbit kitten puppy".split()
)
