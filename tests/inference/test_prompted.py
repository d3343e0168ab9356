"""Questions about images: what the command line takes, what the model is asked, what is left on disk."""

from __future__ import annotations

import io
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image
from rich.console import Console
from torch import Tensor, nn

from locap import entry
from locap.datasets.batches import IMAGE_POINT, Batch, PromptTargets
from locap.datasets.prepare.shapes_vocabulary import FOLDER
from locap.datasets.records import Narrative, Record, Region, TimedWord, encode_mask, read_records
from locap.datasets.tasks import EVAL_INSTRUCTIONS
from locap.datasets.transforms.prompt_mapper import PromptEvalMapper
from locap.inference import single_image
from locap.inference.asks import Ask, make_asks
from locap.inference.captioner import Captioner
from locap.inference.engines import TASKS, PromptEngine
from locap.inference.prompt_mappers import evaluation_mapper
from locap.inference.results import Result
from locap.modeling.schemas import MODEL_SCHEMAS
from locap.modeling.schemas.prompts import Prompts
from locap.modeling.systems import SYSTEMS, System, find_system
from locap.utils.config import load_config, save_config
from locap.utils.errors import UsageError
from locap.utils.files import write_tensors
from locap.utils.tokenizers import LanguageTokenizer

ROOT = Path(entry.__file__).resolve().parent
QUICKSTART = ROOT / "configs" / "quickstart.yaml"
PHOTO = np.full((60, 80, 3), 90, np.uint8)
HALF = np.zeros((60, 80), bool)
HALF[:, :40] = True
ASKS = [
    Ask("text", "the left half"),
    Ask("box", (10.0, 5.0, 50.5, 60.0)),
    Ask("point", (79.5, 0.0)),
    Ask("text", "sky"),
]


class Stub(nn.Module):
    """Answers with what it was asked, in pixels of the original image."""

    def __init__(self, detector: object = None) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.detector, self.encoded, self.batches = detector, 0, []

    def encode(self, images: list[Tensor]) -> int:
        self.encoded += 1
        assert not torch.is_grad_enabled()
        return self.encoded

    def answer(self, encoded: int, batch: Batch, watch: object = None) -> list[Record]:
        assert encoded == self.encoded
        self.batches.append(batch)
        target, (height, width) = batch.targets[0], batch.output_sizes[0]
        record = Record(batch.image_ids[0], height, width)
        if target.task == "trace":
            words = tuple(TimedWord(word, k, k + 1) for k, word in enumerate(("a", "picture", "of", "grass")))
            record.narratives = (Narrative("a picture of grass", words, (((5.0, 5.0, 0.5),), ((70.0, 50.0, 3.5),))),)
        elif target.task == "detect":
            record.regions = [Region(1, box_xyxy=(1, 2, 30, 40), captions=("something",), score=0.5)]
        else:
            record.regions = [self._region(target, row) for row in range(len(target))]
        return [record]

    def _region(self, target: PromptTargets, row: int) -> Region:
        if target.task == "refer":
            box = (0.0, 0.0, 40.0, 60.0)
            return Region(target.region_ids[row], mask=encode_mask(HALF), box_xyxy=box, score=0.75)
        box = tuple(target.boxes_xyxy[row].tolist()) if target.boxes_xyxy[row].any() else None
        return Region(target.region_ids[row], box_xyxy=box, captions=(f"answer {row}",), caption_score=-0.5)


def engine_of(model: Stub, side: int = 160) -> PromptEngine:
    words = LanguageTokenizer.from_pretrained(FOLDER, max_tokens=64)
    mappers = {task: PromptEvalMapper(task, words, image_size=side) for task in TASKS}
    return PromptEngine(model, (), mappers, frozenset({"box", "point", "mask", "text", "prompt"}))


def answered(model: Stub, asks: Sequence[Ask] = ()) -> Result:
    [result] = Captioner(engine_of(model), None).batch([(Record("photo", 60, 80, PHOTO), asks)])
    return result


def test_answers_stand_in_the_order_of_the_questions():
    model = Stub()
    record = answered(model, ASKS).record
    assert [region.id for region in record.regions] == [1, 2, 3, 4]
    assert [region.captions for region in record.regions] == [(), ("answer 0",), ("answer 1",), ()]
    assert [region.expressions for region in record.regions] == [("the left half",), (), (), ("sky",)]
    assert [region.box_xyxy for region in record.regions] == [
        (0.0, 0.0, 40.0, 60.0),
        ASKS[1].value,
        None,
        (0.0, 0.0, 40.0, 60.0),
    ]
    assert record.regions[2].points == (ASKS[2].value,)
    assert record.regions[3].mask == encode_mask(HALF)
    assert (record.image_id, record.height, record.width, record.narratives) == ("photo", 60, 80, ())


def test_an_image_is_encoded_once_and_all_prompts_of_a_task_go_together():
    model = Stub()
    answered(model, ASKS)
    refer, region = (batch.targets[0] for batch in model.batches)
    assert (model.encoded, refer.task, region.task) == (1, "refer", "region")
    assert refer.texts == ["the left half", "sky"]
    assert refer.contexts == ["where is the left half", "where is sky"]
    assert refer.prompt_points[0].tolist() == [[0, 0], [160, 120]]
    assert region.prompt_points.tolist() == [[[20, 10], [101, 120]], [[159, 0], [0, 0]]]
    assert region.prompt_labels[:, 0].tolist() == [2, IMAGE_POINT]
    assert region.region_ids == [2, 3]
    assert not torch.cat([refer.learns, region.learns]).any()


@pytest.mark.parametrize(("detector", "tasks"), [(None, ["trace"]), (object(), ["trace", "detect"])])
def test_without_questions_the_image_is_narrated_and_what_it_shows_is_found(detector, tasks):
    model = Stub(detector)
    record = answered(model).record
    assert [batch.targets[0].task for batch in model.batches] == tasks
    assert [batch.targets[0].contexts for batch in model.batches] == [[EVAL_INSTRUCTIONS[task][0]] for task in tasks]
    assert model.encoded == 1
    assert [told.caption for told in record.narratives] == ["a picture of grass"]
    assert len(record.regions) == len(tasks) - 1


def test_a_long_phrase_is_announced(caplog):
    answered(Stub(), [Ask("text", "red " * 40)])
    assert "MODEL.PROMPTS.MAX_CONTEXT" in caplog.text


def test_the_mapper_is_as_configured():
    body = OmegaConf.structured(Prompts)
    body.REFER.INSTRUCTIONS, body.MAX_CONTEXT = ["Find {}!"], 7
    cfg = OmegaConf.create({"COCO": {"INPUT": {"IMAGE_SIZE": 96}}})
    cfg.MODEL = {"PROMPTS": body}
    words = LanguageTokenizer.from_pretrained(FOLDER, max_tokens=64)
    mappers = {task: evaluation_mapper(task, words, cfg) for task in TASKS}
    assert mappers["refer"].instructions["refer"] == ("Find {}!",)
    assert mappers["trace"].instructions["trace"] == EVAL_INSTRUCTIONS["trace"]
    assert {(mapper.image_size, mapper.writer.max_context) for mapper in mappers.values()} == {(96, 7)}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("box", [1, 2, float("nan"), 4]), "finite"),
        (("point", [float("inf"), 4]), "finite"),
        (("box", [30, 2, 10, 4]), "--box 10 2 30 4"),
        (("box", [10, 2, 10, 4]), "no area"),
        (("text", " ,.. "), "The phrase is empty"),
        (("text", "caf\udce9"), "not text"),
    ],
)
def test_impossible_questions(given, message):
    with pytest.raises(UsageError, match=message):
        make_asks([given])


@pytest.mark.parametrize("ask", [Ask("box", (-1.0, 0, 9, 9)), Ask("box", (0, 0, 81, 9.0)), Ask("point", (3.0, 60.5))])
def test_places_outside_the_image_are_told_with_its_size(ask):
    model = Stub()
    with pytest.raises(UsageError, match=r"lies outside the image[^$]*80 wide and 60 high") as caught:
        answered(model, [ask])
    assert str(ask.value) in str(caught.value)
    assert model.encoded == 0


def test_a_box_without_pixels_is_refused():
    with pytest.raises(UsageError, match="too small"):
        answered(Stub(), [Ask("box", (70.0, 1, 70.0 + 1e-12, 9))])


def test_file_picture_and_table_show_prompts_and_answers(tmp_path: Path):
    result = answered(Stub(), ASKS)
    shown = io.StringIO()
    paths = result.save(tmp_path, "photo")
    result.print(Console(file=shown, width=120))
    [read], _, _ = read_records(paths[0])
    assert read.regions == result.record.regions
    assert Image.open(paths[1]).width == 1024
    rows = [[cell.strip() for cell in line.strip("│").split("│")] for line in shown.getvalue().splitlines()]
    assert ["1", "text the left half", "0.75", "0 0 40 60", ""] in rows
    assert ["2", "box 10 5 50.5 60", "", "10 5 50 60", "answer 0"] in rows
    assert ["3", "point 79.5 0", "", "", "answer 1"] in rows


def test_a_narrative_is_printed_without_an_empty_table():
    shown = io.StringIO()
    answered(Stub()).print(Console(file=shown, width=120))
    assert shown.getvalue().split() == ["narrative", "a", "picture", "of", "grass"]


@pytest.fixture
def prompted(monkeypatch) -> Stub:
    """The command line with a stub in place of a trained system."""
    model = Stub()
    monkeypatch.setattr(single_image, "make_engine", lambda *_: engine_of(model))
    return model


def run(*words: object) -> int:
    return entry.main(["predict", "--conf_files", str(QUICKSTART), *map(str, words)])


def test_the_command_line_keeps_the_order_of_its_prompts(prompted: Stub, tmp_path: Path, capsys):
    for name in ("a.png", "b.png"):
        Image.fromarray(PHOTO).save(tmp_path / name)
    prompts = ["--text", "sky", "--box", 0, 0, 80, 60, "--point", 1.5, 2, "--box", 1, 1, 2, 2]
    images = ["--image", tmp_path / "a.png", tmp_path / "b.png"]
    assert run(*images, *prompts, "--output", tmp_path / "out") == 0
    for name in ("a", "b"):
        [record], _, _ = read_records(tmp_path / "out" / f"{name}.json")
        assert [region.box_xyxy for region in record.regions] == [(0, 0, 40, 60), (0, 0, 80, 60), None, (1, 1, 2, 2)]
        assert record.regions[0].expressions == ("sky",)
        assert record.regions[2].points == ((1.5, 2.0),)
    assert prompted.encoded == 2


def test_a_place_outside_any_of_the_images_is_told_before_anything_is_computed(prompted: Stub, tmp_path: Path, capsys):
    for name, size in (("a.png", (80, 60)), ("b.png", (20, 20))):
        Image.new("RGB", size).save(tmp_path / name)
    images = ["--image", tmp_path / "a.png", tmp_path / "b.png"]
    assert run(*images, "--point", 50, 50, "--output", tmp_path / "out") == 2
    assert "b.png" in capsys.readouterr().err
    assert prompted.encoded == 0


def test_a_system_without_prompts_says_so(capsys, tmp_path: Path, monkeypatch):
    silent = System(*(getattr(SYSTEMS["pix2cap_model"], name) for name in ("tokenizer", "model")))
    monkeypatch.setitem(SYSTEMS, "pix2cap_model", silent)
    assert run("--text", "sky", "--output", tmp_path) == 2
    told = capsys.readouterr().err
    assert "This system takes no text." in told
    assert "no prompts: it describes all it finds" in told
    assert "leave out --text" in told


@pytest.fixture(scope="module")
def untrained(tmp_path_factory) -> Path:
    """A run folder of a tiny PixelLLM with every part, as it was drawn."""
    tiny = "MODEL.MASKS true MODEL.DETECTOR.ENABLED true MODEL.DETECTOR.MIN_SCORE 0 MODEL.DETECTOR.DETECTIONS 3"
    words = [*tiny.split(), "MODEL.TRACE_WORDS", "given"]
    cfg = load_config([ROOT / "configs" / "pixelllm" / "pixelllm_shapes.yaml"], words, model_schemas=MODEL_SCHEMAS)
    system = find_system(cfg.MODEL.NAME)
    torch.manual_seed(0)
    model = system.model(cfg, (), system.tokenizer(cfg))
    folder = tmp_path_factory.mktemp("untrained")
    save_config(cfg, folder / "config.yaml")
    write_tensors(
        folder / "model.safetensors", {name: value.contiguous() for name, value in model.state_dict().items()}
    )
    return folder


def test_a_real_system_is_asked(untrained: Path, tmp_path: Path, capsys):
    Image.fromarray(PHOTO).save(tmp_path / "a.png")
    line = ["predict", "--model", str(untrained), "--image", str(tmp_path / "a.png"), "--output", str(tmp_path)]
    asked = ["--text", "the red circle", "--box", "10", "5", "50.5", "60", "--point", "79.5", "0"]
    assert entry.main([*line, *asked]) == 0, capsys.readouterr().err
    [record], _, _ = read_records(tmp_path / "a.json")
    assert [len(region.captions) for region in record.regions] == [0, 1, 1]
    assert record.regions[0].mask["size"] == [60, 80]
    assert [region.box_xyxy for region in record.regions[1:]] == [(10, 5, 50.5, 60), None]
    assert entry.main(line) == 0, capsys.readouterr().err
    [record], _, _ = read_records(tmp_path / "a.json")
    assert len(record.regions) == 3
    assert record.narratives[0].caption
    assert len(record.narratives[0].words) == len(record.narratives[0].traces) > 0


@pytest.mark.fault("E6")
@pytest.mark.parametrize("size", [(1, 1), (3000, 1), (1, 3000)])
def test_the_thinnest_images_are_asked(untrained: Path, tmp_path: Path, capsys, size: tuple[int, int]):
    Image.fromarray(PHOTO).resize(size).save(tmp_path / "a.png")
    line = ["predict", "--model", str(untrained), "--image", str(tmp_path / "a.png"), "--output", str(tmp_path)]
    box = ["0", "0", *map(str, size)]
    assert entry.main([*line, "--text", "the red circle", "--box", *box, "--point", "0.5", "0.5"]) == 0, (
        capsys.readouterr()
    )
    [record], _, _ = read_records(tmp_path / "a.json")
    assert (record.width, record.height) == size
    assert [len(region.captions) for region in record.regions] == [0, 1, 1]
    assert entry.main(line) == 0, capsys.readouterr().err


def test_a_system_that_reads_boxes_only_says_so(untrained: Path, capsys):
    key = "MODEL.PROMPT_FEATURES.PUBLISHED_PROMPTS"
    assert entry.main(["predict", "--model", str(untrained), "--point", "1", "1", "--overrides", key, "true"]) == 2
    told = capsys.readouterr().err
    assert "This system takes no point." in told
    assert "--box, --mask, --prompt, --text" in told


def test_wrong_prompts_are_told_before_torch_is_loaded():
    line = [str(ROOT / "entry.py"), "predict", "--conf_files", str(QUICKSTART), "--box", "5", "5", "1", "1"]
    watched = f"import runpy, sys; sys.argv = {line!r}\ntry: runpy.run_path(sys.argv[0], run_name='__main__')\n"
    watched += "except SystemExit as err: sys.exit(100 * ('torch' in sys.modules) + err.code)"
    done = subprocess.run([sys.executable, "-c", watched], capture_output=True, text=True, timeout=120, cwd=ROOT)
    assert done.returncode == 2, done.stderr
    assert "corners of the box are exchanged" in done.stderr
