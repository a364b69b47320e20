"""Words, first names and cities, real and made up, that the skills draw from."""

from __future__ import annotations

import random

__all__ = [
    "CITIES",
    "COMMON_WORDS",
    "FIRST_NAMES",
    "PROMPT_WORDS",
    "TOPICS",
    "pseudo_city",
    "pseudo_name",
    "pseudo_word",
]


def _listed(text: str, separator: str = " ") -> tuple[str, ...]:
    """Split a long text, with its line ends, at ``separator``."""
    parts = " ".join(text.split()).split(separator)
    return tuple(part.strip() for part in parts if part.strip())


COMMON_WORDS: tuple[str, ...] = _listed(
    """
    able about above across action active actor after again agent almost alone along always
    amount ancient angle animal answer apple april arrow artist autumn avenue baby back ball
    balloon banana band bank basic basket beach bean bear beauty bed before begin behind believe
    bell below bench better bicycle bird black blanket blue board boat body bone book border
    bottle bottom bowl box brain branch bread break bridge bright bring brother brown brush
    bubble bucket build burn bus butter button cabin cable cake camera camp candle candy carbon
    card carpet carrot castle cat cave center chain chair chance change cheese cherry chess
    chicken child circle city clean clear climb clock cloud coast coat coffee cold color common
    computer cook cookie copper corner cotton country cousin cover cow cream crystal cup curtain
    cycle dance danger dark daughter day deep deer desert desk dinner dog doll dolphin donkey
    door double dragon dream dress drink drive drum duck dust eagle early earth east easy edge
    egg eight elephant empty energy engine enjoy evening every example eye face family farm fast
    father feather fence field finger fire fish five flag floor flower fly fog food foot forest
    fork fox free fresh friend frog fruit full future garden gate gentle ghost giant gift
    giraffe girl glass glove goat gold good grape grass gravity green ground group guitar hammer
    hand happy harbor hat hawk head health heart heavy hello help hill history holiday honey
    hope horse hospital hot hotel hour house human hundred hungry ice idea insect island jacket
    jelly jewel join joke journey juice jump jungle just keen kernel kettle key kind king
    kitchen kite kitten knee knife ladder lake lamp land language large laugh leaf learn leather
    left lemon letter library light lion lip listen little lizard long lost lucky lunch machine
    magic magnet mango map market marble math maybe meadow medal melon memory metal middle milk
    mind minute mirror model modern monday money monkey month moon morning mother mountain mouse
    mouth movie museum mushroom music nail name narrow nature near neck needle neighbor nest
    network never night nine noise noon north nose note number ocean office often olive onion
    open orange orchard order other otter outside oven owl page paint palace panda paper parent
    park parrot party path peace peach pear pearl pencil people pepper perfect person phone
    photo piano picture pig pillow pilot pizza plane planet plant plate play pocket poem poet
    pony potato present pretty prince public pumpkin puppy purple puzzle python queen question
    quick quiet rabbit radio rain rainbow reach ready red ribbon rice ring river road robot rock
    rocket roof room root rope rose round ruler sail salad salt sand school science sea second
    secret seven shadow shark sheep shelf shell ship shirt shoe shop short silk silver simple
    sister six sky sleep slow small smile snake snow soap soccer soft song soup south space
    spider spoon spring square squirrel stable star station stone storm story street strong
    student sugar summer sun sunset sweet swim table tail tall tea teacher ten tennis tent
    theater thing thunder ticket tiger time tiny tomato tooth top tower town toy train travel
    tree triangle truck trumpet tulip tunnel turtle two umbrella uncle under unicorn valley vase
    velvet very village violet violin visit voice volcano wagon walk wall walnut warm wash watch
    water wave weather week west whale wheat wheel whisper white wide wild wind window winter
    wise wizard wolf wonder wood wool word world worm yacht yard year yellow yes young zebra
    zero zone
    """
)

PROMPT_WORDS: tuple[str, ...] = _listed(
    """
    about advance amount answer arithmetic around assistant backwards base body briefly
    calculate calculator called capital careful change characters chat city clock clusters
    compute concise convert correct country currency current data degrees demo difference
    duration evaluate expert expression extract fields follow format formula friendly function
    geography helpful honest input instructions integer keys know language length letters
    location lookup meet message minus minutes nation numbers object output pages parameters
    people phrase place please plus polite price properties public quote recipient remember
    repeat reply required respond result return reverse search second sentence service source
    spelled spelling state stock students subtract symbol target ticker timer times tiny tool
    total train translate translation users value weather web which words write young
    """
)

FIRST_NAMES: tuple[str, ...] = _listed(
    """
    Aaron Abigail Adam Ahmed Aisha Akira Alan Alba Alex Alice Alina Amara Amelia Amir Amy Ana
    Anders Andrea Andrew Angela Anita Anna Anton Aria Arthur Astrid Ava Beatriz Ben Bianca Boris
    Brenda Brian Bruno Camila Carl Carla Carlos Carmen Cecilia Chen Chloe Chris Clara Claudia
    Daisuke Dana Daniel David Deborah Diana Diego Dmitri Edith Eduardo Elena Elias Elif
    Elizabeth Ella Emil Emily Emma Eric Erika Esther Ethan Eva Farah Fatima Felix Finn Florence
    Francis Frank Freya Gabriel George Gina Giulia Grace Greta Gustav Hana Hannah Hans Harry
    Hassan Helen Henrik Hugo Ian Ibrahim Ines Ingrid Irene Iris Isaac Isabel Ivan Jack Jacob
    James Jan Jane Jasmine Javier Jens Jing Joan Johan John Jonas Jorge Joseph Juan Judith Julia
    Kai Karen Karim Kate Keiko Kenji Kevin Kofi Lara Lars Laura Layla Lea Leo Liam Lina Linda
    Ling Lisa Louis Lucas Lucia Luna Magnus Malik Marco Maria Marie Mario Mark Marta Martin Mary
    Mateo Max Maya Mei Mia Michael Miguel Mila Mina Mira Mohamed Monica Nadia Naomi Natalie
    Nathan Nicolas Nina Noah Nora Olga Oliver Olivia Omar Oscar Otto Pablo Paul Paula Pedro
    Peter Petra Philip Priya Quinn Rachel Rafael Raj Ravi Rebecca Rita Robert Robin Rosa Ruth
    Ryan Said Sakura Sam Samira Sandra Sara Sarah Sean Sergei Sigrid Simon Sofia Sophie Stefan
    Stella Susan Sven Tamara Tanya Teresa Thomas Tim Tom Tomas Ursula Valentina Vera Victor
    Viktor Vincent Walter Wei Wendy William Xavier Yara Yasmin Yuki Yusuf Zara Zoe
    """
)

CITIES: tuple[str, ...] = _listed(
    """
    Amsterdam,Athens,Atlanta,Auckland,Austin,Baghdad,Baltimore,Bangkok,Barcelona,Beijing,Belfast,Berlin,Bern,
    Bogota,Bologna,Bordeaux,Boston,Bremen,Brisbane,Bristol,Brussels,Budapest,Buenos
    Aires,Cairo,Calgary,Cape Town,
    Caracas,Cardiff,Casablanca,Chennai,Chicago,Cologne,Copenhagen,Dakar,Dallas,Delhi,Denver,Detroit,Dhaka,Doha,
    Dresden,Dubai,Dublin,Edinburgh,Florence,Frankfurt,Geneva,Genoa,Glasgow,Gothenburg,Granada,Hamburg,Hanoi,Havana,
    Helsinki,Houston,Istanbul,Jakarta,Karachi,Kigali,Krakow,Kyiv,Kyoto,Lagos,Las
    Vegas,Leipzig,Lima,Lisbon, Liverpool,London,Los
    Angeles,Lyon,Madrid,Malaga,Manchester,Manila,Marseille,Melbourne,Miami,Milan,Montreal,
    Moscow,Mumbai,Munich,Nagoya,Nairobi,Naples,Nashville,New Orleans,New
    York,Nice,Oakland,Orlando,Osaka,Oslo,
    Ottawa,Oxford,Palermo,Paris,Perth,Philadelphia,Phoenix,Porto,Portland,Prague,Quito,Rabat,Reykjavik,Riga,
    Rio de Janeiro,Rome,Rotterdam,Salzburg,San Diego,San Francisco,Santiago,Sao
    Paulo,Sarajevo,Seattle,Seoul,
    Seville,Shanghai,Singapore,Sofia,Stockholm,Stuttgart,Sydney,Taipei,Tallinn,Tehran,Tokyo,Toronto,Toulouse,
    Tunis,Turin,Utrecht,Valencia,Vancouver,Venice,Vienna,Vilnius,Warsaw,Wellington,Zagreb,Zurich
    """,
    ",",
)

TOPICS: tuple[str, ...] = _listed(
    """
    the sea,quantum physics,love,my cat,autumn leaves,the moon,old trains,the French
    Revolution,machine learning, gardens,a brave knight,climate change,black holes,the stock
    market,photosynthesis,chess,a lost dog,the future, cooking pasta,jazz,mountain hiking,the
    Roman Empire,electric cars,dinosaurs,the internet,happiness,winter, coffee,a dragon,the
    history of paper,vaccines,supercomputers,linear algebra,football,the Renaissance,robots,
    deep sea fish,bees,friendship,time travel,Shakespeare,volcanoes,the human
    brain,bicycles,free will,music theory, space travel,rainy
    days,databases,compilers,GPUs,large language models,a small village,my grandmother,elections
    """,
    ",",
)

_CITY_STARTS = (
    "New",
    "San",
    "Los",
    "Las",
    "Saint",
    "Port",
    "El",
    "La",
    "Rio de",
    "Santa",
    "Fort",
    "Cape",
    "North",
)
_CITY_ENDS = ("City", "Town", "Beach", "Falls", "Springs", "Bay", "Hills", "Aires")
_ONSETS = ("b", "c", "d", "f", "g", "h", "j", "k", "l", "m", "n", "p", "r", "s", "t", "v", "w", "z")
_CLUSTERS = (
    "bl",
    "br",
    "ch",
    "cl",
    "cr",
    "dr",
    "fl",
    "gr",
    "pl",
    "pr",
    "qu",
    "sh",
    "sk",
    "st",
    "th",
    "tr",
    "x",
    "y",
)
_VOWELS = ("a", "e", "i", "o", "u", "ai", "ea", "ee", "io", "oo", "ou", "y")
_CODAS = ("", "", "", "l", "m", "n", "r", "s", "t", "ck", "nd", "ng", "rt", "st", "x")
_LETTERS = "abcdefghijklmnopqrstuvwxyz"


def _syllable(rng: random.Random) -> str:
    onsets = _ONSETS if rng.random() < 0.75 else _CLUSTERS
    vowel = _VOWELS[int(rng.random() ** 2 * len(_VOWELS))]
    return rng.choice(onsets) + vowel + rng.choice(_CODAS)


def pseudo_word(rng: random.Random, shortest: int = 3, longest: int = 8) -> str:
    """Make up a lower-case word of ``shortest`` to ``longest`` letters.

    One in five has plain random letters; one in five is a common word with other letters before or
    after it, so that the letters inside every token of the tokenizer are learned.
    """
    length = rng.randint(shortest, longest)
    luck = rng.random()
    if luck < 0.2:
        return "".join(rng.choices(_LETTERS, k=length))
    if luck < 0.4:
        core = rng.choice(COMMON_WORDS if rng.random() < 0.6 else PROMPT_WORDS)[: longest - 1]
        extra = "".join(rng.choices(_LETTERS, k=rng.randint(1, min(3, longest - len(core)))))
        return core + extra if rng.random() < 0.7 else extra + core
    word = ""
    while len(word) < length:
        word += _syllable(rng)
    return word[:length]


def pseudo_name(rng: random.Random) -> str:
    """Make up a capitalised first name of 3 to 8 letters."""
    name = _syllable(rng)
    while len(name) < 3 or (len(name) < 6 and rng.random() < 0.6):
        name += _syllable(rng)
    return name[:8].capitalize()


def pseudo_city(rng: random.Random) -> str:
    """Make up a city of one, two or three words."""
    name = pseudo_name(rng)
    luck = rng.random()
    if luck < 0.4:
        return name
    if luck < 0.75:
        return f"{rng.choice(_CITY_STARTS)} {name}"
    return f"{name} {rng.choice(_CITY_ENDS) if rng.random() < 0.6 else pseudo_name(rng)}"
