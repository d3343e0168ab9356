"""The picture at the head of a page."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from PIL import Image

from locap.datasets.shapes import Shapes
from locap.inference.hero import THINGS, WIDTH, hero_picture, write_small


def test_hero_is_small_and_shows_images_of_one_length(tmp_path: Path):
    scenes = Shapes(12, split="test", image_size=128)
    things = {category.id for category in scenes.categories if category.is_thing}
    counts = [sum(region.category_id in things for region in scene.regions) for scene in scenes]
    fitting = [scene for scene, count in zip(scenes, counts, strict=True) if count == THINGS]
    assert 3 <= len(fitting) < len(scenes)
    hero = hero_picture([(scene.read_image(), scene) for scene in scenes], scenes.categories)
    chosen = hero_picture([(scene.read_image(), scene) for scene in fitting], scenes.categories)
    assert hero.width == WIDTH
    assert hero == chosen
    file = write_small(hero, tmp_path / "hero.png")
    assert file.stat().st_size < 200_000
    assert Image.open(file).mode == "P"


def test_hero_of_what_a_poor_model_sees():
    scenes = Shapes(2, split="test", image_size=64)
    nothing = [(scene.read_image(), replace(scene, regions=[])) for scene in scenes]
    assert hero_picture(nothing, scenes.categories).width == WIDTH
