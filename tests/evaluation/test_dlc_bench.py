"""DLC-Bench: reading answers, scores by hand, replay and the variant with images."""

from __future__ import annotations

import base64
import io
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from locap.datasets.records import Question, Record, Region, encode_mask, read_records, write_records
from locap.entry import main
from locap.evaluation.dlc_bench import PROMPT, DlcBench, outlined_image, parse_choice, score_region
from locap.evaluation.formats import PREDICTIONS, TRUTHS, load_ground_truth, load_predictions
from locap.evaluation.runner import evaluate_stored
from locap.utils.errors import DataError, MissingDependencyError, UsageError

POSITIVE = [["It is red.", 1], ["It is blue.", -1], ["Not mentioned.", 0], ["It is reddish.", 0.5]]
NEGATIVE = [["A dog is beside it.", -1], ["No dog is mentioned.", 1], ["Perhaps.", 0]]
QA = {
    "12": [
        {"question": "Colour?", "choices": POSITIVE, "type": "positive"},
        {"question": "Company?", "choices": NEGATIVE, "type": "negative"},
        {"question": "Colour again?", "choices": POSITIVE, "type": "positive"},
    ],
    "7": [{"question": "Colour?", "choices": POSITIVE, "type": "positive"}],
    "105": [
        {"question": "Colour?", "choices": POSITIVE, "type": "positive"},
        {"question": "Company?", "choices": NEGATIVE, "type": "negative"},
    ],
}
NAMES = {"12": "bus", "7": "apple", "105": "wine glass"}
DESCRIPTIONS = {"12": "A red bus.", "7": "A blue apple.", "105": "A dog {pred_caption} {question_text_str}"}
RESPONSES = {  # class, then one per question
    "12": ["Yes", "A. It is red.", "B", "D"],  # positive (1 + 0.5) / 2, negative 1
    "7": ["Yes.", "It is blue."],  # positive -1, no negative
    "105": ["No", "A", "a. a dog is beside it."],  # capped: positive 0, negative -1
}
FIGURES = {"positive": (0.75 - 1 + 0) / 3, "negative": 0.0, "average": (0.75 - 1 + 0) / 6}


@pytest.fixture
def bench(tmp_path):
    folder = tmp_path / "DLC-Bench" / "annotations"
    folder.mkdir(parents=True)
    (folder / "qa.json").write_text(json.dumps(QA))
    (folder / "class_names.json").write_text(json.dumps(NAMES))
    return folder


@pytest.fixture
def with_pictures(bench):
    """Also the images, and the regions in them as polygons and run lengths."""
    (bench.parent / "images").mkdir()
    Image.new("RGB", (1600, 800), (255, 255, 255)).save(bench.parent / "images" / "a.jpg")
    mask = np.zeros((800, 1600), bool)
    mask[200:600, 400:1200] = True
    polygon = [400, 200, 1200, 200, 1200, 600, 400, 600]
    segmentations = {12: [polygon], 7: encode_mask(mask), 105: {"size": [800, 1600], "counts": [0, 10, 1279990]}}
    document = {
        "images": [{"id": 1, "file_name": "a.jpg", "height": 800, "width": 1600}],
        "annotations": [
            {"id": n, "image_id": 1, "segmentation": mask, "category_id": 1} for n, mask in segmentations.items()
        ],
    }
    (bench / "annotations.json").write_text(json.dumps(document))
    return bench


@pytest.fixture
def truth(bench):
    return load_ground_truth(bench / "qa.json")[0]


@pytest.fixture
def answers(tmp_path):
    path = tmp_path / "descriptions.json"
    path.write_text(json.dumps(DESCRIPTIONS))
    return path


@pytest.fixture
def published(tmp_path):
    """A results file as the published evaluation writes it."""
    body = {n: {"pred": DESCRIPTIONS[n], "prompt": ["…"], "response": RESPONSES[n]} for n in QA}
    path = tmp_path / "model_eval.json"
    path.write_text(json.dumps({**body, "avg_pos": -0.083, "avg_neg": 0.0}))
    return path


def predicted(truth, texts=DESCRIPTIONS):
    return [
        Record(
            r.image_id, r.height, r.width, regions=[Region(id=x.id, captions=(texts[str(x.id)],)) for x in r.regions]
        )
        for r in truth
    ]


def evaluate(truth, predictions=None, **options):
    options = {"dlc_bench": options}
    (result,) = evaluate_stored(truth, predictions or predicted(truth), ["dlc_bench"], [], options=options)
    return result


def answer_as(responses):
    """A server's answers: found by the description and the question in the prompt."""

    def answer(body):
        content = body["messages"][0]["content"]
        prompt = content if isinstance(content, str) else content[1]["text"]
        number = next(n for n, text in DESCRIPTIONS.items() if f"\n{text}\n" in prompt)
        questions = [NAMES[number], *(f"\n{q['question']}\n" for q in QA[number])]
        return responses[number][next(i for i, q in reversed(list(enumerate(questions))) if q in prompt or i == 0)]

    return answer


@pytest.mark.parametrize(
    ("answer", "choice"),
    [
        ("red", 0), ("RED ", 0), ("a", 0), ("A", 0), ("a. red", 0), ("B. not red", 1), ("b", 1),  # in full, or a letter
        ("the dark blue one", 2), ("C. the dark blue one", 2),  # the only one that occurs
        ("B. red", 0), ("c. it is not red", 2),  # the text before the letter, unless several would do
        ("not red", 1), ("it is not red", 0), ("red, not dark blue", 2), ("dark blue, red", 0),  # the last
        ("blue", 2), ("dark", 3), ("e", 3),  # part of a choice; of several the longest
        ("B\nbecause", 1),
        ("none of them", None), ("z", None), ("", None), ("  ", None), ("F. none", None), ("?", None),
    ],
)  # fmt: skip
def test_reading_an_answer(answer, choice):
    """As the published evaluation reads it, which prefers what begins last: "red" in "it is not red"."""
    assert parse_choice(answer, ["red", "not red", "dark blue", "very dark green"]) == choice


def test_of_choices_that_begin_together_the_longest_counts():
    assert parse_choice("it is red wine", ["red", "red wine", "wine cellar"]) == 1


@given(st.lists(st.text(st.characters(codec="ascii"), max_size=6), min_size=1, max_size=6), st.text(max_size=12))
def test_reading_any_answer(choices, answer):
    found = parse_choice(answer, choices)
    assert found is None or 0 <= found < len(choices)
    for index, letter in zip(range(len(choices)), "abcdef", strict=False):
        if letter not in [choice.strip().lower() for choice in choices]:
            assert parse_choice(letter, choices) == index


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        (["Yes", "A", "B"], (True, 1.0, 1.0, 0)),
        (["No", "A", "B"], (False, 0.0, 0.0, 0)),
        (["No", "B", "A"], (False, -1.0, -1.0, 0)),
        (["Difficult.", "A", "A"], (False, 0.0, -1.0, 1)),
        (["Yes", "???", ""], (True, 0.0, 0.0, 2)),
        (["Yes", "D", "C"], (True, 0.5, 0.0, 0)),
    ],
)
def test_scores_of_a_region(answers, expected):
    questions = [
        Question("", tuple(map(tuple, POSITIVE)), "positive"),
        Question("", tuple(map(tuple, NEGATIVE)), "negative"),
    ]
    score = score_region(questions, answers)
    assert (score.recognised, score.positive, score.negative, score.unparsable) == expected


def check(result):
    assert result.figures == pytest.approx(FIGURES, abs=1e-15)
    assert result.counts == {
        "regions": 3, "positive_questions": 4, "negative_questions": 2, "recognised": 2,
        "without_negative_questions": 1, "unparsable": 0, "empty_descriptions": 0,
    }  # fmt: skip
    assert [row[:5] for row in result.regions.rows] == [
        (7, "apple", True, -1.0, None),
        (12, "bus", True, 0.75, 1.0),
        (105, "wine glass", False, 0.0, -1.0),
    ]


def test_a_published_results_file_gives_its_figures(truth, published):
    result = evaluate(truth, judge_file=str(published), judge="llama-3.1-8b")
    check(result)
    assert result.variant == "text, judge llama-3.1-8b, published prompt"
    with pytest.raises(UsageError, match="does not name its judge"):
        DlcBench([], judge_file=str(published))


def test_the_judge_is_asked_about_the_class_then_every_question(server, truth, tmp_path):
    server.answer = answer_as(RESPONSES)
    options = server.options(tmp_path)
    live = evaluate(truth, **options)
    check(live)
    assert live.variant == "text, judge fake-judge-0613"
    assert {(b["temperature"], b["max_tokens"]) for b in server.bodies} == {(0.0, 300)}
    prompts = server.prompts()
    assert len(prompts) == 3 + 6
    about_bus = [prompt for prompt in prompts if DESCRIPTIONS["12"] in prompt]
    assert "bus?" in about_bus[0]
    assert "\nA. Yes\nB. No\n" in about_bus[0]
    company = "\nCompany?\nA. A dog is beside it.\nB. No dog is mentioned.\nC. Perhaps.\n"
    assert PROMPT.replace("{pred_caption}", "A red bus.").replace("\n{question_text_str}\n", company) in about_bus
    assert sum(DESCRIPTIONS["105"] in prompt for prompt in prompts) == 3  # what looks like a place in it stays
    server.bodies.clear()
    replay = evaluate(truth, judge_file=options["judge_cache"])
    assert not server.bodies
    assert (replay.figures, replay.counts, replay.regions, replay.variant) == (
        live.figures, live.counts, live.regions, live.variant
    )  # fmt: skip
    changed = predicted(truth, DESCRIPTIONS | {"7": "A green apple."})
    result = evaluate(truth, changed, judge_file=options["judge_cache"])
    assert "to 1 of 3 descriptions" in result.unavailable["all figures"]


def test_the_command_replays_a_results_file(bench, answers, published, tmp_path):
    command = ["evaluate", "--protocol", "dlc_bench", "--ground-truth", str(bench / "qa.json")]
    options = ["--option", f"judge_file={published}", "judge=llama"]
    assert main([*command, "--predictions", str(answers), *options]) == 0
    body = json.loads((tmp_path / "descriptions_results.json").read_text())
    assert body["results"][0]["figures"] == pytest.approx(FIGURES, abs=1e-15)
    assert body["results"][0]["variant"] == "text, judge llama, published prompt"


def test_another_prompt(server, truth, tmp_path):
    path = tmp_path / "prompt.txt"
    path.write_text("Q: {question_text_str}\nD:\n{pred_caption}\nend {x}")
    result = evaluate(truth, prompt_file=str(path), **server.options(tmp_path))
    assert result.variant.startswith("text, prompt ") or ", prompt " in result.variant
    first = (
        "Q: Colour?\nA. It is red.\nB. It is blue.\nC. Not mentioned.\nD. It is reddish.\nD:\nA blue apple.\nend {x}"
    )
    assert first in server.prompts()
    path.write_text("{pred_caption}")
    with pytest.raises(UsageError, match=r"prompt lacks a place(.|\n)*question_text_str"):
        evaluate(truth, prompt_file=str(path), **server.options(tmp_path))


def test_the_variants_are_never_mixed(server, with_pictures, tmp_path):
    truth, _ = load_ground_truth(with_pictures / "qa.json")
    server.answer = answer_as(RESPONSES)
    options = server.options(tmp_path)
    text, seen = evaluate(truth, **options), evaluate(truth, variant="with_image", **options)
    check(seen)
    assert len(server.bodies) == 18  # nothing was taken from the other variant
    assert (text.variant, seen.variant) == ("text, judge fake-judge-0613", "with_image, judge fake-judge-0613")
    evaluators = [DlcBench([], variant=variant, **options) for variant in ("text", "with_image")]
    with pytest.raises(DataError, match=r"another protocol(.|\n)*with_image"):
        evaluators[0].merge(evaluators[1])
    picture, prompt = server.bodies[-1]["messages"][0]["content"]
    assert prompt["text"] in [body["messages"][0]["content"] for body in server.bodies[:9]]
    url = picture["image_url"]["url"]
    image = Image.open(io.BytesIO(base64.b64decode(url.removeprefix("data:image/png;base64,"))))
    assert (image.format, image.size) == ("PNG", (1024, 512))
    assert "base64" not in (tmp_path / "answers.jsonl").read_text()


def test_the_outline_surrounds_the_region(with_pictures):
    truth, _ = load_ground_truth(with_pictures / "qa.json")
    for record in truth[:2]:  # the same rectangle, as polygon and as run lengths
        image = np.asarray(Image.open(io.BytesIO(outlined_image(record.image, record.regions[0].mask))).convert("RGB"))
        assert (image[128, 512], image[256, 256]) == (pytest.approx((255, 0, 0), abs=60),) * 2
        assert (image[256, 512] > 250).all()
        assert (image[20, 20] > 250).all()


def test_without_pictures_no_judge_can_see(server, truth, tmp_path):
    with pytest.raises(DataError, match="image or mask is missing"):
        evaluate(truth, variant="with_image", **server.options(tmp_path))


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_ranks_and_order_change_nothing(truth, published, ranks):
    options = {"judge_file": str(published), "judge": "m"}
    expected = evaluate(truth, **options)
    pairs = list(zip(truth, predicted(truth), strict=True))
    for order in (pairs, pairs[::-1]):
        parts = [DlcBench([], **options) for _ in range(ranks)]
        for index, pair in enumerate(order):
            parts[index % ranks].update(*pair)
        for part in parts[1:]:
            parts[0].merge_state(json.loads(json.dumps(part.state())))
        assert parts[0].compute() == expected


@given(st.permutations(list(QA)), st.lists(st.sampled_from("ABCD"), min_size=9, max_size=9))
def test_perfect_answers_score_one_and_no_answer_more(order, letters):
    questions = [
        Question("", tuple(map(tuple, POSITIVE)), "positive"),
        Question("", tuple(map(tuple, NEGATIVE)), "negative"),
    ]
    best = score_region(questions, ["Yes", "A", "B"])
    assert (best.positive, best.negative) == (1.0, 1.0)
    for start in range(0, 9, 3):
        some = score_region(questions, letters[start : start + 3])
        assert -1.0 <= some.positive <= 1.0
        assert -1.0 <= some.negative <= 1.0
        unrecognised = score_region(questions, ["No", *letters[start + 1 : start + 3]])
        assert unrecognised.positive <= min(0.0, some.positive)
        assert unrecognised.negative <= min(0.0, some.negative)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda d: d.pop("7"), MissingDependencyError, "about 1 of 3 descriptions(.|\n)*7"),
        (lambda d: d["7"].update(pred="other"), DataError, "1 descriptions are not those(.|\n)*7"),
        (lambda d: d["7"]["response"].pop(), DataError, "1 regions have another number of questions"),
        (lambda d: d["7"].update(response=None), DataError, '"response" is missing'),
        (lambda d: d["7"]["response"].append(None), DataError, '"response" is missing'),
        (lambda d: d.update({"7": 3}), DataError, '"response" is missing'),
        (lambda d: d.clear(), DataError, "holds no answers"),
    ],
)
def test_a_results_file_that_does_not_fit(truth, published, change, error, message):
    document = json.loads(published.read_text())
    change(document)
    published.write_text(json.dumps(document))
    with pytest.raises(error, match=message):
        compute(truth, judge_file=str(published), judge="m")


def compute(truth, **options):
    evaluator = DlcBench([], **options)
    for record, prediction in zip(truth, predicted(truth), strict=True):
        evaluator.update(record, prediction)
    return evaluator.compute()


def test_without_negative_questions_there_is_no_average(truth, published):
    result = evaluate(truth[1:2], judge_file=str(published), judge="m")
    assert result.figures == {"positive": -1.0}
    assert result.undefined.keys() == {"negative", "average"}
    assert DlcBench([], judge_file=str(published), judge="m").compute().undefined.keys() == {"average"}


def test_forms_are_told_apart():
    item = {"image": "a.png", "question": "?", "answer": "x", "capability": ["rec"]}
    truths = {"vip_bench": {"v1_0": item}, "dlc_bench": QA}
    predictions = {
        "vip_bench": [{"v1_0": "x"}, [{"question_id": 0, "prompt": "?", "text": "x"}]],
        "dlc_bench": [DESCRIPTIONS],
    }
    for name, document in truths.items():
        assert [key for key, form in TRUTHS.items() if form.recognises(document)] == [name]
        assert not any(form.recognises(document) for form in PREDICTIONS.values())
    for name, document in ((name, document) for name, documents in predictions.items() for document in documents):
        assert [key for key, form in PREDICTIONS.items() if form.recognises(document)] == [name]
        assert not any(form.recognises(document) for form in TRUTHS.values())
    odd = [
        {},
        [],
        None,
        "v1_0",
        5,
        [[]],
        {"v1_0": []},
        {"1": []},
        {"1": [1]},
        {"12": 1},
        [{"question_id": 0, "text": ""}],
    ]
    forms = [TRUTHS[name] for name in truths] + [PREDICTIONS[name] for name in predictions]
    assert not any(form.recognises(document) for form in forms for document in odd)


def test_truth_survives_a_record_file(with_pictures, answers, tmp_path):
    truth, _ = load_ground_truth(with_pictures / "qa.json")
    assert read_records(write_records(tmp_path / "t.json", truth))[0] == truth
    assert truth[0].regions[0].phrases == ("bus",)
    assert [len(record.regions[0].questions) for record in truth] == [3, 1, 2]
    stored = load_predictions(answers, truth)
    assert load_predictions(write_records(tmp_path / "p.json", stored), truth) == stored


def test_questions_about_the_class_are_the_protocols_own(bench):
    document = json.loads((bench / "qa.json").read_text())
    document["7"].insert(0, {"question": "Is it an apple?", "choices": [["Yes", "correct"]], "type": "recognition"})
    (bench / "qa.json").write_text(json.dumps(document))
    truth, _ = load_ground_truth(bench / "qa.json")
    assert len(truth[1].regions[0].questions) == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d["12"][1].update(choices="A"), '"choices" is missing or of the wrong type(.|\n)*12.1.'),
        (lambda d: d["12"][1].update(choices=[["A"]]), "not .text, score."),
        (lambda d: d["12"][1].update(choices=[["A", "1"]]), "not .text, score."),
        (lambda d: d["12"][1].update(choices=[["A", True]]), "not .text, score."),
        (lambda d: d["12"][1].pop("question"), '"question" is missing'),
        (lambda d: d["12"][1].pop("type"), '"type" is missing'),
        (lambda d: d.update({"seven": d["7"]}), '"seven" is missing|Not the id of a region'),
        (lambda d: d.update({"8": d["7"]}), '"8" is missing(.|\n)*class_names'),
        (lambda d: d.update({"7": 3}), '"7" is missing or of the wrong type'),
    ],
)
def test_questions_that_are_malformed(bench, change, message):
    document = json.loads((bench / "qa.json").read_text())
    change(document)
    (bench / "qa.json").write_text(json.dumps(document))
    with pytest.raises(DataError, match=message):
        load_ground_truth(bench / "qa.json")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d["annotations"].pop(), "no annotation(.|\n)*105"),
        (lambda d: d["images"].clear(), "no annotation, or that has no image"),
        (lambda d: d["images"][0].update(file_name="../../x.jpg"), "leaves its folder"),
        (lambda d: d["images"][0].update(height=801), "another size than its image"),
        (
            lambda d: d["annotations"][1]["segmentation"].update(size=[80, 160]),
            "do not fill its size(.|\n)*annotation 7",
        ),
        (lambda d: d["annotations"][0].update(segmentation=[[1, 2]]), "polygon is malformed(.|\n)*annotation 12"),
        (lambda d: d["annotations"][0].update(id="12"), '"id" is missing or of the wrong type'),
    ],
)
def test_annotations_that_are_malformed(with_pictures, change, message):
    path = with_pictures / "annotations.json"
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))
    with pytest.raises(DataError, match=message):
        load_ground_truth(with_pictures / "qa.json")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"12": "x", "7": "y", "105": "z", "106": "w"}', "1 prediction.s. are of no region(.|\n)*106"),
        ('{"12": "x"}', "2 image.s. have no prediction"),
        ('{"12": "x", "7": ["y"]}', "7(.|\n)*str"),
        ('{"12": "x", "avg": "y"}', "Not the id of a region(.|\n)*avg"),
        ('{"12": "x", "012": "y"}', "Not the id of a region"),
        ("\xff", "not UTF-8"),
    ],
)
def test_descriptions_that_do_not_fit(truth, tmp_path, content, message):
    path = tmp_path / "p.json"
    path.write_bytes(content.encode("latin1"))
    with pytest.raises(DataError, match=message):
        load_predictions(path, truth)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: setattr(t, "phrases", ()), "no questions of DLC-Bench"),
        (lambda t: setattr(t, "questions", ()), "no questions of DLC-Bench"),
        (lambda t: setattr(t, "questions", (Question("?", (("a", 1.0),), "neutral"),)), "no questions of DLC-Bench"),
        (lambda t: setattr(t, "questions", (Question("?", (), "positive"),)), "no questions of DLC-Bench"),
        (lambda t: setattr(t, "questions", (Question("?", ((" ", 1.0),), "positive"),)), "no questions of DLC-Bench"),
        (lambda t: setattr(t, "questions", (Question("?", (("a", 1.5),), "positive"),)), "worth too much"),
    ],
)
def test_records_that_do_not_fit(truth, published, change, message):
    change(truth[0].regions[0])
    with pytest.raises(DataError, match=message):
        evaluate(truth, judge_file=str(published), judge="m")


def test_the_message_of_a_failed_request_is_no_description(truth, published):
    with pytest.raises(DataError, match="message of a failed request"):
        evaluate(truth, predicted(truth, DESCRIPTIONS | {"7": "Error: timeout"}), judge_file=str(published), judge="m")


def test_an_empty_description_is_judged_and_counted(server, truth, tmp_path):
    result = evaluate(truth, predicted(truth, DESCRIPTIONS | {"7": ""}), **server.options(tmp_path))
    assert result.counts["empty_descriptions"] == 1
    assert len(server.bodies) == 9
