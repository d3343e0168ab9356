"""What is said about a scene: captions, phrases, referring expressions, narratives, conversations.

Attribute words never vary, only grammar does, so that every statement can be read back (`reading.read_caption`).
"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

from .reading import relates
from .scene import Scene, SceneObject, pick

NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight")
WORD_SECONDS = 0.3  # a narrator's pace

# {S} an object with its article ("a small red striped star"), {rel} the relation, {o} the other object without article
TEMPLATES = (
    "{a_size} {colour} {texture} {shape} is {rel} a {o}",
    "there is {a_size} {colour} {texture} {shape} {rel} the {o}",
    "{rel} the {o} there is {a_size} {colour} {texture} {shape}",
    "{rel} a {o} lies {a_size} {texture} {colour} {shape}",
    "the {colour} {shape} is {size} and {texture} and lies {rel} a {o}",
    "the {size} {shape} {rel} a {o} is {colour} and {texture}",
    "on the {ground} lies {a_size} {colour} {texture} {shape} {rel} the {o}",
    "{a_texture} {shape} that is {size} and {colour} lies on the {ground} {rel} a {o}",
    "the {texture} {colour} {shape} {rel} the {o} is {size}",
    "{rel} the {o} the {ground} holds {a_size} {colour} {shape} that is {texture}",
)
GROUND_TEMPLATES = (
    "the {ground} fills the {place} of the picture and {object} lies on it",
    "{ground} covers the {place} of the picture under {object}",
    "in the {place} of the picture there is {ground} with {object} on it",
)
EMPTY_TEMPLATES = (
    "the {ground} fills the {place} of the picture and no object lies on it",
    "{ground} covers the {place} of the picture without an object on it",
    "in the {place} of the picture there is {ground} with no object on it",
)
PHRASES = ("{size} {colour} {shape}", "{texture} {shape}", "{texture} {colour} {shape}", "{size} {texture} {shape}")


def a(words: str) -> str:
    """Put the right article in front."""
    return ("an " if words[0] in "aeiou" else "a ") + words


def plural(shape: str) -> str:
    """Return the name of several."""
    return shape + ("es" if shape.endswith("s") else "s")


def full_name(item: SceneObject) -> str:
    """Return "small red striped star"."""
    return f"{item.size} {item.colour} {item.texture} {item.shape}"


def relation_words(relation: str) -> str:
    """Return the relation as captions say it."""
    return f"to the {relation}" if relation in ("left of", "right of") else relation


def captions_of(rng: Random, scene: Scene, index: int, count: int = 3) -> tuple[str, ...]:
    """Return sentences of different grammar about one object: attributes and where it lies."""
    item = scene.objects[index]
    other = scene.objects[item.other]
    values = {
        "size": item.size,
        "colour": item.colour,
        "texture": item.texture,
        "shape": item.shape,
        "ground": item.ground,
        "rel": relation_words(item.relation),
        "a_size": a(item.size),
        "a_texture": a(item.texture),
        "o": f"{other.colour} {other.shape}",
    }
    templates = sorted(TEMPLATES, key=lambda _: rng.random())[:count]
    return tuple(_mend_articles(template.format(**values)) for template in templates)


def _mend_articles(sentence: str) -> str:
    return sentence.replace(" a orange", " an orange")  # the only attribute word that starts with a vowel


def phrases_of(rng: Random, item: SceneObject) -> tuple[str, ...]:
    """Return two different names of an object, 2 to 4 words each."""
    first = int(rng.random() * len(PHRASES))
    second = (first + 1 + int(rng.random() * (len(PHRASES) - 1))) % len(PHRASES)
    values = {"size": item.size, "colour": item.colour, "texture": item.texture, "shape": item.shape}
    return tuple(PHRASES[k].format(**values) for k in (first, second))


def expressions_of(rng: Random, scene: Scene, index: int) -> tuple[str, ...]:
    """Return expressions true of this object only: one by looks and, where that is unique, one by relation."""
    item, other = scene.objects[index], scene.objects[scene.objects[index].other]
    found = [_by_looks(rng, scene.objects, index)]
    rivals = [k for k, it in enumerate(scene.objects) if it.shape == item.shape and k != index]
    anchors = [k for k, it in enumerate(scene.objects) if (it.colour, it.shape) == (other.colour, other.shape)]
    if not any(_related(scene, rival, item.relation, k) for rival in rivals for k in anchors if k != rival):
        found.append(f"the {item.shape} {item.relation} the {other.colour} {other.shape}")
    return tuple(found)


def _related(scene: Scene, index: int, relation: str, other: int) -> bool:
    me, you = scene.objects[index], scene.objects[other]
    reach = 0.6 * (me.extent + you.extent)
    return relates(relation, (me.x - you.x, me.y - you.y), reach, in_front=index > other)


def _by_looks(rng: Random, objects: Sequence[SceneObject], index: int) -> str:
    """Add attributes in random order until no other object fits; all of them together always suffice."""
    item, said = objects[index], set()
    rivals = [it for k, it in enumerate(objects) if k != index and it.shape == item.shape]
    for name in sorted(("size", "colour", "texture"), key=lambda _: rng.random()):
        said.add(name)
        rivals = [it for it in rivals if getattr(it, name) == getattr(item, name)]
        if not rivals:
            break
    words = [getattr(item, name) for name in ("size", "colour", "texture") if name in said]
    return " ".join(["the", *words, item.shape])


def ground_captions_of(rng: Random, scene: Scene, index: int) -> tuple[str, ...]:
    """Return two sentences about one piece of ground: its kind, its place, the largest object on it."""
    ground = scene.grounds[index]
    on_it = [item for item in scene.objects if item.ground == ground.kind]
    largest = max(on_it, key=lambda item: item.extent, default=None)
    name = a(f"{largest.colour} {largest.shape}") if largest else ""
    place = "whole" if ground.place == "whole" else f"{ground.place} part"
    templates = sorted(GROUND_TEMPLATES if largest else EMPTY_TEMPLATES, key=lambda _: rng.random())[:2]
    return tuple(template.format(ground=ground.kind, place=place, object=name) for template in templates)


def image_captions_of(rng: Random, scene: Scene) -> tuple[str, ...]:
    """Return two sentences about the whole picture."""
    grounds, count = " and ".join(ground.kind for ground in scene.grounds), NUMBERS[len(scene.objects)]
    largest = max(scene.objects, key=lambda item: item.extent)
    first = pick(rng, ("{count} objects on {grounds}", "a picture of {count} objects on {grounds}"))
    second = pick(
        rng, ("{one} and {more} other objects on {grounds}", "on {grounds} lie {one} and {more} other objects")
    )
    more = NUMBERS[len(scene.objects) - 1]
    return (
        first.format(count=count, grounds=grounds),
        second.format(one=a(full_name(largest)), more=more, grounds=grounds),
    )


def narrative_of(scene: Scene) -> list[tuple[str, int | None]]:
    """Return a narration as clauses, each with the index of the object it is about, from left to right."""
    order = sorted(range(len(scene.objects)), key=lambda k: scene.objects[k].x)
    clauses: list[tuple[str, int | None]] = [("on " + " and ".join(g.kind for g in scene.grounds) + " there is", None)]
    for position, index in enumerate(order):
        name = a(full_name(scene.objects[index]))
        clauses.append((name if position == 0 else f"then {name}", index))
    return clauses


def stroke_over(item: SceneObject, start: float, end: float, points: int = 6) -> list[tuple[float, float, float]]:
    """Return a pointer's zigzag over an object while it is named: (x, y, seconds), x and y in short sides."""
    reach, steps = 0.25 * item.extent, [k / (points - 1) for k in range(points)]
    return [
        (item.x + reach * (2 * s - 1), item.y + reach * (-1) ** k, start + s * (end - start))
        for k, s in enumerate(steps)
    ]


def conversations_of(rng: Random, scene: Scene) -> list[list[tuple[str, str, tuple[int, ...]]]]:
    """Return two talks as (role, text, indices of the objects pointed at)."""
    first, second = (int(rng.random() * len(scene.objects)) for _ in range(2))
    item = scene.objects[second]
    other = scene.objects[item.other]
    kin = tuple(k for k, it in enumerate(scene.objects) if it.shape == item.shape)
    where = f"it is {relation_words(item.relation)} the {other.colour} {other.shape}"
    return [
        [("user", "what is this?", (first,)), ("assistant", captions_of(rng, scene, first, 1)[0], ())],
        [
            ("user", f"how many {plural(item.shape)} are there?", ()),
            ("assistant", NUMBERS[len(kin)], kin),
            ("user", f"where is {_by_looks(rng, scene.objects, second)}?", ()),
            ("assistant", where, (second, item.other)),
        ],
    ]
