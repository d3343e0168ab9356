"""SPICE (Anderson et al. 2016), the stage after the parser: scene-graph tuples of two sides -> F-score.

A tuple is (object,), (object, attribute) or (object, object, relation). The tuples of one side, for the reference those
of all captions in order, become one graph: an object takes the node it equals or is most similar to, an attribute of a
node and a relation between two nodes the first similar one. Two concepts are similar when they share a word or a
WordNet synset; they then become one concept with the words and synsets of both. The graph's nodes, attributes and
relations are its tuples again, and a candidate's tuple is true when a reference tuple of the same length is similar in
all places. So one reference tuple may make several true, and ``missing`` may be negative, as in the original.

Without synsets nothing merges and only equal concepts match. Where the original leaves open which of several equally
similar nodes is taken, it is the oldest here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from fractions import Fraction

from .synonyms import SynonymDictionary, shared_synonyms

CATEGORIES = ("All", "Object", "Attribute", "Relation", "Cardinality", "Color", "Size")
# words that put an attribute into a category
_KINDS = {
    "Cardinality": "one two three four five six seven eight nine ten",
    "Color": """beige black blue brown cream dark gray green grey light maroon orange pink purple red violet white
        yellow""",
    "Size": """baby beefy big bony boundless brawny broad bulky chunky colossal compact corpulent cosmic cubby curvy
        elfin emaciated endless enormous epic expansive extensive fat fleshy full-size gargantuan gaunt giant gigantic
        grand great heavy hefty huge hulking illimitable immeasurable immense infinitesimal lanky large lean life-size
        limitless little mammoth massive meager measly microscopic mini miniature minuscule minute narrow obese outsized
        oversize overweight paltry petite pint-size plump pocket-size portly pudgy puny rotund scanty scraggy scrawny
        short sizable skeletal skimpy skinny slender slim small squat stocky stout strapping sturdy tall teensy teeny
        teeny-tiny teeny-weeny thick thickset thin tiny titanic towering trifling trim tubby undersized underweight
        unlimited vast wee whopping wide""",
}
_WORDS = {name: frozenset(text.split()) for name, text in _KINDS.items()}
_FILTERS: dict[str, Callable[[Sequence[Concept]], bool]] = {
    "All": lambda parts: True,
    "Object": lambda parts: len(parts) == 1,
    "Attribute": lambda parts: len(parts) == 2,
    "Relation": lambda parts: len(parts) == 3,
    "Cardinality": lambda parts: len(parts) == 2 and parts[1].is_one_of(_WORDS["Cardinality"]),
    "Color": lambda parts: len(parts) == 2 and parts[1].is_one_of(_WORDS["Color"]),
    "Size": lambda parts: len(parts) == 2 and parts[1].is_one_of(_WORDS["Size"]),
}


@dataclass(slots=True)
class Concept:
    """Words taken for one, and the synsets of all of them."""

    words: set[str]
    synsets: set[int]

    def is_similar(self, other: Concept) -> bool:
        """Return whether the two share a word or a synset."""
        return not (self.words.isdisjoint(other.words) and self.synsets.isdisjoint(other.synsets))

    def similarity(self, other: Concept) -> Fraction:
        """Return 1 when they share a word, else the share of their synsets that they have in common."""
        if not self.words.isdisjoint(other.words):
            return Fraction(1)
        union = len(self.synsets | other.synsets)
        return Fraction(len(self.synsets & other.synsets), union) if union else Fraction(0)

    def merge(self, other: Concept) -> None:
        """Take over the other's words and synsets."""
        self.words |= other.words
        self.synsets |= other.synsets

    def is_one_of(self, words: frozenset[str]) -> bool:
        """Return whether it is a single word, and of these; one that was merged with another word is not."""
        return len(self.words) == 1 and not self.words.isdisjoint(words)


@dataclass(slots=True, eq=False)
class Node:
    """An object and its attributes."""

    object: Concept
    attributes: list[Concept] = field(default_factory=list)


class SceneGraph:
    """Objects with attributes and relations between them.

    Args:
        tuples: one side's, in order.
        synonyms: the dictionary of synsets.
        merge: whether similar concepts become one.

    Raises:
        ValueError: a tuple has not one, two or three parts.
    """

    def __init__(
        self, tuples: Iterable[Sequence[str]], *, synonyms: SynonymDictionary | None = None, merge: bool = True
    ) -> None:
        self.synonyms, self.merge = synonyms or shared_synonyms(), merge
        self.nodes: list[Node] = []
        self.relations: dict[tuple[int, int], list[Concept]] = {}  # places of the two nodes -> what relates them
        for parts in tuples:
            if not 1 <= len(parts) <= 3:
                raise ValueError(f"a scene-graph tuple has one, two or three parts, got {list(parts)}")
            places = [self._place(name) for name in (parts if len(parts) == 1 else parts[: len(parts) - 1])]
            if len(parts) == 2:
                self._add(self.nodes[places[0]].attributes, self._concept(parts[1]))
            elif len(parts) == 3:
                relation = self._concept(parts[2].removeprefix("be "))
                self._add(self.relations.setdefault((places[0], places[1]), []), relation)

    def tuples(self) -> list[tuple[Concept, ...]]:
        """Return (object,), (object, attribute) and (object, relation, object) of the whole graph."""
        found: list[tuple[Concept, ...]] = []
        for node in self.nodes:
            found += [(node.object,), *((node.object, attribute) for attribute in node.attributes)]
        for (source, target), relations in self.relations.items():
            found += [(self.nodes[source].object, relation, self.nodes[target].object) for relation in relations]
        return found

    def _concept(self, word: str) -> Concept:
        return Concept({word}, set(self.synonyms.synsets(word)))

    def _place(self, word: str) -> int:
        """Return the place of the word's node: an equal one, else the most similar one, else a new one."""
        concept = self._concept(word)
        equal = next((place for place, node in enumerate(self.nodes) if node.object == concept), None)
        if equal is not None:
            return equal
        if self.merge and self.nodes:
            closeness = [concept.similarity(node.object) for node in self.nodes]
            if best := max(closeness):
                self.nodes[closeness.index(best)].object.merge(concept)
                return closeness.index(best)
        self.nodes.append(Node(concept))
        return len(self.nodes) - 1

    def _add(self, known: list[Concept], concept: Concept) -> None:
        if concept in known:
            return
        similar = next((other for other in known if other.is_similar(concept)), None) if self.merge else None
        if similar is None:
            known.append(concept)
        else:
            similar.merge(concept)


@dataclass(frozen=True, slots=True)
class TupleCounts:
    """Tuples of a candidate that are true and false, and reference tuples that no true one stands for."""

    true: int
    false: int
    missing: int

    @property
    def f_score(self) -> float:
        """Return the harmonic mean of precision and recall; 0 when nothing is true."""
        if self.true == 0 or self.true + self.missing == 0:
            return 0.0
        precision, recall = self.true / (self.true + self.false), self.true / (self.true + self.missing)
        return 2.0 * (precision * recall) / (precision + recall)


@dataclass(frozen=True, slots=True)
class TupleScores:
    """SPICE of N candidates.

    Attributes:
        counts: per candidate one `TupleCounts` for each of `CATEGORIES`.
        segments: per candidate the F-score over all tuples.
        corpus: their mean, SPICE.
        categories: category -> mean F-score of the candidates whose reference has such tuples; NaN when none has.
    """

    counts: list[dict[str, TupleCounts]]
    segments: list[float]
    corpus: float
    categories: dict[str, float]


def count_tuples(candidate: SceneGraph, reference: SceneGraph) -> dict[str, TupleCounts]:
    """Match two graphs, over all tuples and per category."""
    ours, theirs = candidate.tuples(), reference.tuples()
    counts = {}
    for name, belongs in _FILTERS.items():
        given, wanted = ([parts for parts in side if belongs(parts)] for side in (ours, theirs))
        true = sum(any(_matches(parts, other, candidate.merge) for other in wanted) for parts in given)
        counts[name] = TupleCounts(true, len(given) - true, len(wanted) - true)
    return counts


def _matches(parts: Sequence[Concept], others: Sequence[Concept], similar: bool) -> bool:
    if len(parts) != len(others):
        return False
    return all(a.is_similar(b) if similar else a == b for a, b in zip(parts, others, strict=True))


def score_tuples(
    candidates: Sequence[Iterable[Sequence[str]]],
    references: Sequence[Iterable[Iterable[Sequence[str]]]],
    *,
    synsets: bool = True,
) -> TupleScores:
    """Score the tuples of N candidates against those of their references.

    Args:
        candidates: N lists of tuples.
        references: N groups of lists of tuples, one list per reference caption.
        synsets: whether synonyms are merged and matched; False is the original's exact match.

    Raises:
        MissingDependencyError: the synonym dictionary is missing.
    """
    counts = []
    for ours, groups in zip(candidates, references, strict=True):
        reference = SceneGraph((parts for group in groups for parts in group), merge=synsets)
        counts.append(count_tuples(SceneGraph(ours, merge=synsets), reference))
    segments = [each["All"].f_score for each in counts]
    categories = {
        name: _mean([each[name].f_score for each in counts if name == "All" or each[name].true + each[name].missing])
        for name in CATEGORIES
    }
    return TupleScores(counts, segments, math.fsum(segments) / len(segments) if segments else 0.0, categories)


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values) if values else math.nan
