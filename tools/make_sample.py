"""Write the bundled sample corpus, esim_fast/data/sample/{train,dev}.tsv, byte for byte the same on every run.

The corpus describes a small world of asymmetric facts (older / younger, above / below, is chasing / is being chased
by). Every premise has one hypothesis of each label. The three use the same words wherever possible, so that word order
decides the label, and not which words occur:

    premise        The nurse is older than the pilot and the baker.
    entailment     The pilot is younger than the nurse.
    contradiction  The pilot is older than the nurse.
    neutral        The pilot is older than the baker.

Needs only the standard library. All randomness comes from `random.Random.random`, because Python guarantees its
sequence for a seed, and not those of `choice`, `sample` and `shuffle`.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")

SEED = 20170214
TRAIN_PAIRS = 9000
DEV_PAIRS = 1000
HEADER = "gold_label\tsentence1\tsentence2\n"
SAMPLE_DIR = Path(__file__).resolve().parents[1] / "esim_fast" / "data" / "sample"


@dataclass(frozen=True)
class Relation:
    """Converse phrases: `x forward y` means `y backward x`, and excludes `y forward x`.

    `{be}` becomes is or are; `{good}` is filled in once per premise.
    """

    forward: str
    backward: str
    tails: tuple[str, ...] = ()  # may follow such a fact in a premise

    def converse(self) -> Relation:
        return replace(self, forward=self.backward, backward=self.forward)


@dataclass(frozen=True)
class Domain:
    """Things of one kind, and the relations between them.

    No relation of a domain may suggest another (such as bigger and heavier), because some neutral hypotheses replace
    the premise's relation.
    """

    pronoun: str
    nouns: tuple[str, ...]
    adjectives: tuple[str, ...]
    relations: tuple[Relation, ...]
    weight: float  # share of the premises
    twins: float = 0.0  # how often all things have the same noun and different adjectives


@dataclass(frozen=True)
class Fact:
    """`subject relation.forward object`, or equally `object relation.backward subject`."""

    relation: Relation
    subject: str
    object: str

    def converse(self) -> Fact:
        """The same fact, told from the other side: `object relation.backward subject`."""
        return Fact(self.relation.converse(), self.object, self.subject)

    def reverse(self) -> Fact:
        """The opposite fact."""
        return Fact(self.relation, self.object, self.subject)

    def text(self) -> str:
        return f"the {self.subject} {verb(self.relation)} the {self.object}"


@dataclass(frozen=True)
class Premise:
    text: str
    true: tuple[Fact, ...]
    unknown: tuple[Fact, ...]  # neither these nor their opposites follow


def verb(relation: Relation, be: str = "is") -> str:
    return relation.forward.replace("{be}", be)


def words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


def comparative(more: str, less: str) -> Relation:
    return Relation(f"{{be}} {more} than", f"{{be}} {less} than")


def progressive(active: str, passive: str) -> Relation:
    """Active and passive of a progressive verb: at any moment, only one can be chasing the other."""
    return Relation(f"{{be}} {active}", f"{{be}} being {passive} by", ("in the park", "near the river", "on the road"))


OLDER = comparative("older", "younger")
TALLER = comparative("taller", "shorter")
FASTER = comparative("faster", "slower")
HEAVIER = comparative("heavier", "lighter")
LOUDER = comparative("louder", "quieter")
CHEAPER = comparative("cheaper", "pricier")
LARGER = comparative("larger", "smaller")
FOLLOWING = progressive("following", "followed")
CHASING = progressive("chasing", "chased")
ARRIVED = Relation("arrived before", "arrived after", ("on Monday", "on Friday", "this morning", "last night"))
BEAT = Relation("beat", "lost to", ("at chess", "at cards", "at tennis", "at golf"))
BUYING = Relation("{be} buying {good} from", "{be} selling {good} to", ("at the market", "in the village"))
ABOVE = Relation("{be} above", "{be} below")
LEFT_OF = Relation("{be} to the left of", "{be} to the right of")
IN_FRONT_OF = Relation("{be} in front of", "{be} behind")
NORTH_OF = Relation("{be} north of", "{be} south of")
EAST_OF = Relation("{be} east of", "{be} west of")

COLORS = words("red blue green yellow white black")
GOODS = words("apples eggs flour honey wool paper candles potatoes")
LEADS = ("as everyone knows,", "it is raining, and", "the sun is shining, and", "we know that", "it is true that")

PEOPLE = Domain(
    pronoun="who",
    nouns=words(
        "nurse pilot baker singer farmer tailor teacher doctor lawyer sailor "
        "painter dancer miner judge clerk guard cook driver writer student"
    ),
    adjectives=words("friendly tired clever famous cheerful polite"),
    relations=(OLDER, TALLER, comparative("stronger", "weaker"), comparative("richer", "poorer"), FASTER, ARRIVED)
    + (FOLLOWING, BEAT, BUYING),
    weight=0.36,
)
ANIMALS = Domain(
    pronoun="which",
    nouns=words("dog cat goat horse fox wolf sheep cow duck bear rabbit monkey"),
    adjectives=words("brown black white grey hungry spotted"),
    relations=(OLDER, TALLER, FASTER, LOUDER, CHASING),
    weight=0.2,
)
VEHICLES = Domain(
    pronoun="which",
    nouns=words("train bus ferry taxi truck tram van boat"),
    adjectives=COLORS,
    relations=(FASTER, LOUDER, ARRIVED, HEAVIER),
    weight=0.12,
    twins=0.15,
)
# One position per domain, because some readers take "above" to exclude "to the left of".
OBJECTS = tuple(
    Domain(
        pronoun="which",
        nouns=words("cup box lamp clock chair basket bottle book vase plate drum kettle mirror pillow"),
        adjectives=COLORS,
        relations=(HEAVIER, CHEAPER, position),
        weight=0.07,
        twins=0.15,
    )
    for position in (ABOVE, LEFT_OF, IN_FRONT_OF)
)
PLACES = tuple(
    Domain(
        pronoun="which",
        nouns=words("castle bridge church school mill station bakery museum"),
        adjectives=words("famous quiet stone white"),
        relations=(OLDER, LARGER, direction),
        weight=0.055,
    )
    for direction in (NORTH_OF, EAST_OF)
)
DOMAINS = (PEOPLE, ANIMALS, VEHICLES, *OBJECTS, *PLACES)


class Generator:
    """Draw premises and hypotheses from one seeded random stream."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed).random

    def pick(self, items: Sequence[T]) -> T:
        return items[int(self.random() * len(items))]

    def shuffled(self, items: Sequence[T]) -> list[T]:
        return [item for _, item in sorted(((self.random(), item) for item in items), key=lambda pair: pair[0])]

    def either_side(self, fact: Fact) -> Fact:
        return fact if self.random() < 0.75 else fact.converse()

    def domain(self) -> Domain:
        threshold = self.random()
        for domain in DOMAINS[:-1]:
            threshold -= domain.weight
            if threshold < 0:
                return domain
        return DOMAINS[-1]

    def things(self, domain: Domain) -> list[str]:
        """Four things, distinguished by the last word of their names or by the whole name."""
        if self.random() < domain.twins:
            noun = self.pick(domain.nouns)
            return [f"{adjective} {noun}" for adjective in self.shuffled(domain.adjectives)[:4]]
        nouns = self.shuffled(domain.nouns)[:4]
        adjectives = self.shuffled(domain.adjectives)
        return [f"{a} {n}" if self.random() < 0.15 else n for a, n in zip(adjectives, nouns, strict=False)]

    def relations(self, domain: Domain) -> tuple[Relation, Relation]:
        """Two different relations, each from either side, with `{good}` filled in."""
        good = self.pick(GOODS)
        first, second = (
            relation if self.random() < 0.5 else relation.converse() for relation in self.shuffled(domain.relations)[:2]
        )
        return tuple(
            replace(r, forward=r.forward.replace("{good}", good), backward=r.backward.replace("{good}", good))
            for r in (first, second)
        )

    def premise(self, domain: Domain) -> Premise:
        """One or two facts, with other facts about the same things that do not follow from them."""
        a, b, c, d = self.things(domain)
        r, q = self.relations(domain)
        fact, other, shape = Fact(r, a, b), Fact(q, a, c), self.random()
        tail = f" {self.pick(r.tails)}" if r.tails and self.random() < 0.4 else ""
        if shape < 0.25:  # neutral: another relation, or sometimes another thing
            unknown = (Fact(q, a, b), Fact(q, b, a)) if self.random() < 0.85 else (Fact(r, a, c), Fact(r, c, b))
            return Premise(fact.text() + tail, (fact,), unknown)
        if shape < 0.48:
            return Premise(f"{fact.text()} and the {c}{tail}", (fact, Fact(r, a, c)), (Fact(r, b, c), Fact(r, c, b)))
        if shape < 0.71:
            text = f"the {a} and the {b} {verb(r, 'are')} the {c}{tail}"
            return Premise(text, (Fact(r, a, c), Fact(r, b, c)), (Fact(r, a, b), Fact(r, b, a)))
        if shape < 0.86:  # two facts that share a thing but not the relation
            mixed = (Fact(q, a, b), Fact(q, b, a), Fact(r, a, c), Fact(r, c, a))
            if self.random() < 0.5:
                text = f"the {a}, {domain.pronoun} {verb(r)} the {b}, {verb(q)} the {c}"
                return Premise(text, (fact, other), mixed)
            other = self.pick((other, other.reverse()))
            return Premise(f"{fact.text()}, and {other.text()}", (fact, other), mixed)
        second = Fact(r, c, d)  # two facts that share the relation but no thing
        crossed = tuple(Fact(r, *pair) for x in (a, b) for y in (c, d) for pair in ((x, y), (y, x)))
        return Premise(f"{fact.text()}, and {second.text()}", (fact, second), crossed)

    def hypothesis(self, fact: Fact, short: bool) -> str:
        """The fact from either side; `short` drops the adjectives."""
        fact = self.either_side(fact)
        if short:
            fact = Fact(fact.relation, fact.subject.split()[-1], fact.object.split()[-1])
        return sentence(fact.text())

    def triple(self) -> list[tuple[str, str, str]]:
        """One premise with a hypothesis of each label."""
        domain = self.domain()
        premise = self.premise(domain)
        text = premise.text
        if "," not in text and self.random() < 0.1:
            text = f"{self.pick(LEADS)} {text}"
        text = sentence(text)
        names = {name for fact in premise.true + premise.unknown for name in (fact.subject, fact.object)}
        short = self.random() < 0.5 and len({name.split()[-1] for name in names}) == len(names)
        return [
            ("entailment", text, self.hypothesis(self.pick(premise.true), short)),
            ("neutral", text, self.hypothesis(self.pick(premise.unknown), short)),
            ("contradiction", text, self.hypothesis(self.pick(premise.true).reverse(), short)),
        ]


def sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."


def generate() -> dict[str, str]:
    """The contents of both files, by name. Premises are unique, so no pair of dev is in train."""
    generator = Generator(SEED)
    premises: set[str] = set()
    files = {}
    for name, count in (("dev.tsv", DEV_PAIRS), ("train.tsv", TRAIN_PAIRS)):
        rows: list[tuple[str, str, str]] = []
        while len(rows) < count:
            triple = generator.triple()
            if triple[0][1] not in premises:
                premises.add(triple[0][1])
                rows += triple
        lines = ("\t".join(row) + "\n" for row in generator.shuffled(rows[:count]))
        files[name] = HEADER + "".join(lines)
    return files


def main() -> None:
    SAMPLE_DIR.mkdir(parents=True, exist_ok=True)
    for name, text in generate().items():
        (SAMPLE_DIR / name).write_bytes(text.encode("utf-8"))


if __name__ == "__main__":
    main()
