"""Captions of about twenty words from a small grammar, and others that nearly say the same."""

from __future__ import annotations

import numpy as np

NOUNS = [
    "man", "woman", "boy", "girl", "child", "player", "rider", "skater", "chef", "waiter", "crowd", "couple", "dog",
    "cat", "horse", "cow", "sheep", "elephant", "giraffe", "zebra", "bear", "bird", "car", "bus", "truck", "train",
    "bicycle", "motorcycle", "airplane", "boat", "bench", "chair", "table", "couch", "bed", "desk", "lamp", "window",
    "door", "wall", "fence", "tree", "bush", "flower", "grass", "field", "hill", "mountain", "river", "lake", "beach",
    "road", "street", "sidewalk", "bridge", "building", "tower", "roof", "sign", "clock", "umbrella", "backpack",
    "handbag", "suitcase", "kite", "frisbee", "surfboard", "skateboard", "racket", "bat", "glove", "ball", "bottle",
    "glass", "cup", "plate", "bowl", "fork", "knife", "spoon", "sandwich", "pizza", "cake", "banana", "apple",
    "orange", "carrot", "laptop", "keyboard", "mouse", "phone", "book", "vase", "toothbrush", "towel", "sink",
    "mirror", "oven", "refrigerator", "curtain", "carpet", "pillow", "blanket", "shelf", "cabinet", "counter",
]  # fmt: skip
ADJECTIVES = [
    "red", "blue", "green", "yellow", "white", "black", "brown", "grey", "orange", "purple", "large", "small", "tall",
    "short", "long", "narrow", "wide", "round", "square", "wooden", "metal", "plastic", "glass", "leather", "striped",
    "spotted", "plain", "bright", "dark", "shiny", "dusty", "old", "new", "young", "empty", "full", "open", "closed",
    "parked", "standing", "sitting", "sleeping", "smiling", "blurry", "distant", "nearby", "curved", "flat", "thick",
    "thin", "wet", "dry",
]  # fmt: skip
VERBS = [
    "stands", "sits", "lies", "leans", "rests", "hangs", "waits", "walks", "runs", "plays", "looks", "points",
    "faces", "rises", "stretches", "extends", "appears", "shines",
]  # fmt: skip
PLACES = [
    "on", "in", "near", "behind", "under", "above", "beside", "across from", "next to", "in front of",
    "to the left of", "to the right of", "at the edge of",
]  # fmt: skip
ENDINGS = [
    "while looking at the camera", "with its back turned", "in the background of the scene",
    "partly hidden by a shadow", "as the sun sets behind it", "with a calm expression", "and seems to be moving",
    "in the foreground of the picture", "and takes up most of the view", "with its surface catching the light",
]  # fmt: skip
ALIKE = {
    "large": "big", "small": "little", "grey": "gray", "man": "person", "woman": "lady", "street": "road",
    "couch": "sofa", "picture": "image", "sits": "is sitting", "stands": "is standing", "beside": "next to",
    "building": "house", "bicycle": "bike", "motorcycle": "motorbike", "airplane": "plane", "child": "kid",
}  # fmt: skip


def write_caption(rng: np.random.Generator) -> str:
    """Return a sentence of 14 to 26 words."""

    def thing() -> str:
        adjectives = ADJECTIVES if rng.random() < 0.7 else ADJECTIVES[:10]
        return f"{pick(rng, ADJECTIVES)} {pick(rng, adjectives)} {pick(rng, NOUNS)}"

    clause = f"A {thing()} {pick(rng, VERBS)} {pick(rng, PLACES)} the {thing()}"
    more = f", {pick(rng, PLACES)} a {pick(rng, NOUNS)}" if rng.random() < 0.8 else ""
    return f"{clause}{more}, {pick(rng, ENDINGS)}."


def rewrite_caption(rng: np.random.Generator, caption: str) -> str:
    """Return the caption with some words gone, exchanged or put in other words; one in five is about something else."""
    if rng.random() < 0.2:
        return write_caption(rng)
    words = []
    for word in caption.split():
        chance = rng.random()
        if chance < 0.06:
            continue
        exchanged = (
            pick(rng, ADJECTIVES if word in ADJECTIVES else NOUNS) if word in _CONTENT and chance < 0.3 else word
        )
        words.append(ALIKE.get(exchanged, exchanged) if chance > 0.6 else exchanged)
    return " ".join(words)


def write_phrase(rng: np.random.Generator) -> str:
    """Return a few words about a region, as in Visual Genome."""
    start = f"{pick(rng, ADJECTIVES)} {pick(rng, NOUNS)}"
    return f"{start} {pick(rng, PLACES)} the {pick(rng, NOUNS)}" if rng.random() < 0.7 else f"the {start}"


def rewrite_phrase(rng: np.random.Generator, phrase: str) -> str:
    """Return a phrase that shares some words with another."""
    words = [pick(rng, NOUNS) if word in _CONTENT and rng.random() < 0.35 else word for word in phrase.split()]
    return " ".join(ALIKE.get(word, word) if rng.random() < 0.5 else word for word in words)


def pick(rng: np.random.Generator, choices: list[str]) -> str:
    """Return one of the choices."""
    return choices[int(rng.integers(len(choices)))]


_CONTENT = frozenset(NOUNS + ADJECTIVES)
