"""MUSE: the published figures, hand-made questions, the invariants, and input that is wrong."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.optimize import linear_sum_assignment

from locap.datasets.records import Record, Region, Turn, decode_mask, encode_mask, read_logits, write_records
from locap.entry import main
from locap.evaluation.formats import load_ground_truth, load_predictions
from locap.evaluation.matching.muse_matching import draw_points, pair_cost, sample
from locap.evaluation.muse import MuseQuestions
from locap.evaluation.muse_questions import match, raw_areas
from locap.evaluation.runner import evaluate_stored
from locap.utils.errors import DataError, UsageError

SIZE = 12
VARIANTS = MuseQuestions.variants


def score(truth, predictions, variant="standard", **options):
    (result,) = evaluate_stored(truth, predictions, ["muse"], (), options={"muse": {"variant": variant} | options})
    return result


def column(result, name):
    return [row[result.regions.columns.index(name)] for row in result.regions.rows]


def golden(shared):
    folder = shared / "golden" / "eval" / "muse"
    for case, expected in json.loads((folder / "expected.json").read_text())["cases"].items():
        truth, _ = load_ground_truth(folder / case / "muse.json")
        yield folder / case, expected, truth, load_predictions(folder / case / "muse.json", truth)


def by_image(result, value):
    """Return ``value`` of every row, in a list per image, images and rows in their order."""
    images = {}
    for row in result.regions.rows:
        cells = dict(zip(result.regions.columns, row, strict=True))
        images.setdefault(cells["image_id"], []).append(value(cells))
    return list(images.values())


@pytest.mark.parametrize("variant", ["upstream", "fixed"])
def test_published_figures(shared, variant):
    for _, expected, truth, predictions in golden(shared):
        result = score(truth, predictions, variant)
        assert result.figures["giou"] == pytest.approx(expected[variant]["gIoU"], abs=1e-6)
        assert result.figures["ciou"] == pytest.approx(expected[variant]["cIoU"], abs=1e-6)
        per_image = [row[1:] for row in result.tables["images"].rows]
        np.testing.assert_allclose(per_image, expected[variant]["per_image_bgIoU_fgIoU_maxnum"], rtol=0, atol=1e-6)


def test_published_pairs(shared):
    for _, expected, truth, predictions in golden(shared):
        result = score(truth, predictions, "upstream")
        areas = by_image(
            result,
            lambda cells: [
                [cells["background_intersection"], cells["intersection"]],
                [cells["background_union"], cells["union"]],
            ],
        )
        assert areas == expected["upstream"]["intersection_union_per_pair"]
        matched = by_image(result, lambda cells: None not in (cells["predicted_id"], cells["target_id"]))
        assert matched == expected["assign_length"]


@pytest.mark.parametrize("variant", VARIANTS)
def test_published_assignments_and_answers(shared, variant):
    for _, expected, truth, predictions in golden(shared):
        result = score(truth, predictions, variant)
        found = {}
        for row in result.regions.rows:
            found.setdefault(row[:2], []).append(row)
        assignments, answers, counts = [], [], []
        for record, predicted in zip(truth, predictions, strict=True):
            asked = [
                (i, *turns) for i, turns in enumerate(zip(record.conversations, predicted.conversations, strict=True))
            ]
            answers.append([])
            counts.append([])
            for index, true_turns, turns in asked:
                rows = found.get((record.image_id, index), [])
                pairs = [row[2:4] for row in rows if None not in row[2:4]]
                assignments.append(
                    [
                        [turns[1].region_ids.index(p) for p, _ in pairs],
                        [true_turns[1].region_ids.index(g) for _, g in pairs],
                    ]
                )
                answers[-1].append(rows[0][-1])
                counts[-1].append(len(rows))
        assert assignments == expected["assignment_pred_gt_per_question"]
        assert answers == expected["answers"]
        assert counts == expected["total_pred_count"]


def test_published_costs(shared):
    for folder, expected, truth, predictions in golden(shared):
        points = np.load(folder / "points_first_question.npy")
        record, predicted = truth[0], predictions[0]
        ids, true_ids = predicted.conversations[0][1].region_ids, record.conversations[0][1].region_ids
        logits = read_logits([r for r in predicted.regions if r.id in ids], record.height, record.width)
        targets = np.array([decode_mask(r.mask) for r in record.regions if r.id in true_ids], np.float32)
        cost = pair_cost(sample(np.array(logits), points), sample(targets, points))
        np.testing.assert_allclose(cost, expected["cost_matrix_first_question"], rtol=0, atol=1e-5)


def test_identical_predictions_are_told_apart_as_published():
    """The published matcher took the first for the first: its costs are float32."""
    logits = np.full((2, SIZE, SIZE), -1.0, np.float32)
    logits[:, :4, :4] = 1.0
    targets = np.zeros((2, SIZE, SIZE), bool)
    targets[0, :8, :3] = targets[1, 2:8] = True
    assert match(logits, targets, draw_points()) == [(0, 0), (1, 1)]


def test_the_command_line_scores_a_file_that_holds_both(shared, tmp_path):
    folder, expected, *_ = next(golden(shared))
    file, output = str(folder / "muse.json"), tmp_path / "out.json"
    arguments = ["--protocol", "muse", "--variant", "upstream", "--output", str(output), "--csv"]
    assert main(["evaluate", "--predictions", file, "--ground-truth", file, *arguments]) == 0
    figures = json.loads(output.read_text())["results"][0]["figures"]
    assert figures["ciou"] == pytest.approx(expected["upstream"]["cIoU"], abs=1e-6)
    assert "You need the (None []) left car" in (tmp_path / "out_muse.csv").read_text()


def rectangle(x0, y0, x1, y1):
    mask = np.zeros((SIZE, SIZE), bool)
    mask[y0:y1, x0:x1] = True
    return mask


def image(image_id, *questions, text="where?", answer=""):
    """One record; a question is a list of corners."""
    record = Record(image_id, SIZE, SIZE)
    for corners in questions:
        ids = tuple(range(len(record.regions) + 1, len(record.regions) + 1 + len(corners)))
        record.regions += [
            Region(i, mask=encode_mask(rectangle(*c)), phrases=(f"({i})",)) for i, c in zip(ids, corners, strict=True)
        ]
        record.conversations += ((Turn("user", text), Turn("assistant", answer, ids)),)
    return record


A, B, C = (0, 0, 4, 4), (6, 6, 10, 10), (0, 8, 2, 12)


def test_missed_targets_and_spurious_predictions_count_as_empty_pairs():
    truth = [image(1, [A, B], [A]), image(2, [B])]
    predictions = [image(1, [B], [A, C, C], answer="[SEG] and [SEG], [SEG]"), image(2, [(6, 6, 10, 8)])]
    exact = score(truth, predictions)
    # image 1: B found, A missed; A found, C twice too many; image 2: half of B
    assert exact.figures == {"giou": 2.5 / 6, "ciou": (16 + 16 + 8) / (16 + 16 + 16 + 8 + 8 + 16)}
    assert {k: exact.counts[k] for k in ("matched", "missed", "spurious")} == {"matched": 3, "missed": 1, "spurious": 2}
    fixed = score(truth, predictions, "fixed")
    assert fixed.figures["giou"] == pytest.approx(2.5 / 5, abs=1e-4)  # 4 predictions, not 5 pairs, in image 1
    assert fixed.figures["ciou"] == pytest.approx(exact.figures["ciou"], abs=1e-6)
    upstream = score(truth, predictions, "upstream")  # logits of -10 and 10 are in no bin: right about nothing
    assert upstream.figures["giou"] == pytest.approx(4.5 / 5, abs=1e-4)
    assert upstream.figures["ciou"] == pytest.approx(40 / 64, abs=1e-6)
    assert column(exact, "answer")[2] == "(3) and (None []), (None [])"


def test_histogram_of_raw_logits():
    logits = np.array([[-3, 0, 0, 0.25], [0.499, 0.5, 1, 1.125]], np.float32)
    assert raw_areas(logits) == ((2, 0), (4 + 8 - 2, 2))


def test_images_without_masks_are_counted_only():
    empty = image(1, [], [])
    for variant in VARIANTS:
        both = score([empty, image(2, [A])], [empty, image(2, [A])], variant)
        assert both.figures["giou"] == pytest.approx(1.0, abs=2e-5)
        assert both.counts["images_without_masks"] == 1
        assert set(score([empty], [empty], variant).undefined) == {"giou", "ciou"}


def test_costs_of_one_pair_worked_out_by_hand():
    logits, target = np.array([[0.0, 3.0, -2.0]]), np.array([[1.0, 1.0, 0.0]])
    chance = 1 / (1 + np.exp(-logits))
    entropy = -(target * np.log(chance) + (1 - target) * np.log(1 - chance)).mean()
    dice = 1 - (2 * (chance * target).sum() + 1) / (chance.sum() + 2 + 1)
    np.testing.assert_allclose(pair_cost(logits, target), [[entropy + dice]], rtol=1e-14)


def test_sampling_is_bilinear_and_zero_outside():
    masks = np.array([[[4.0, 8.0]]], np.float32)  # pixel centres at x = 0.25 and 0.75
    points = np.array([[0.25, 0.5], [0.5, 0.5], [0.0, 0.5], [1.0, 0.5], [0.25, 0.0]])
    np.testing.assert_allclose(sample(masks, points), [[4, 6, 2, 4, 2]])
    assert sample(masks[:0], points).shape == (0, 5)
    np.testing.assert_array_equal(draw_points(), draw_points())


CORNERS = st.tuples(*[st.integers(0, SIZE)] * 4).map(lambda c: (*np.minimum(c[:2], c[2:]), *np.maximum(c[:2], c[2:])))
QUESTIONS = st.lists(st.tuples(st.lists(CORNERS, max_size=3), st.lists(CORNERS, max_size=3)), min_size=1, max_size=2)


@settings(max_examples=6, deadline=None)
@given(st.lists(QUESTIONS, min_size=1, max_size=6), st.randoms(use_true_random=False))
def test_order_and_parts_of_images_do_not_matter(images, random):
    truth = [image(i, *(true for true, _ in questions)) for i, questions in enumerate(images)]
    predictions = [image(i, *(given for _, given in questions)) for i, questions in enumerate(images)]
    order = [record.image_id for record in truth]
    for variant in VARIANTS:
        whole = score(truth, predictions, variant)
        assert score(truth, random.sample(predictions, len(predictions)), variant) == whole
        assert all(0 <= value <= 1 for value in whole.figures.values()) or variant != "standard"
        for parts in (2, 4):
            objects = [MuseQuestions((), variant=variant, image_order=order) for _ in range(parts)]
            for index, pair in enumerate(zip(truth, predictions, strict=True)):
                objects[index % parts].update(*pair)
            merged = MuseQuestions((), variant=variant, image_order=order)
            for part in random.sample(objects, parts):
                merged.merge_state(json.loads(json.dumps(part.state())))
            assert merged.compute() == whole


SOLID = CORNERS.filter(lambda c: c[2] > c[0] and c[3] > c[1])


@settings(max_examples=20, deadline=None)
@given(st.lists(SOLID, min_size=1, max_size=4, unique=True), st.randoms(use_true_random=False))
def test_perfect_answers_in_any_order_score_one_and_duplicates_never_help(corners, random):
    truth = [image(1, corners)]
    answers = random.sample(corners, len(corners))
    for variant in VARIANTS:
        perfect = score(truth, [image(1, answers)], variant)
        assert perfect.figures == pytest.approx(
            {"giou": 1.0, "ciou": 1.0}, abs=0.0 if variant == "standard" else 2.1e-5
        )
    extra = score(truth, [image(1, [*answers, answers[0]])])
    assert extra.figures["giou"] == pytest.approx(len(corners) / (len(corners) + 1))
    assert extra.figures["ciou"] < 1
    assert score(truth, [image(1, [*answers, (0, 0, 0, 0)])]).figures["giou"] < 1


@settings(max_examples=20, deadline=None)
@given(st.lists(CORNERS, min_size=1, max_size=4), st.lists(CORNERS, min_size=1, max_size=4))
def test_the_assignment_is_the_cheapest(true, given_):
    result = score([image(1, true)], [image(1, given_)])
    logits = np.array([np.where(rectangle(*c), 10.0, -10.0).ravel() for c in given_])
    cost = pair_cost(logits, np.array([rectangle(*c).ravel() for c in true]))
    pairs = [(p - 1, g - 1) for p, g in zip(column(result, "predicted_id"), column(result, "target_id"), strict=True)
             if None not in (p, g)]  # fmt: skip
    rows, columns = linear_sum_assignment(cost)
    assert len(pairs) == len(rows)
    assert sum(cost[pair] for pair in pairs) == pytest.approx(cost[rows, columns].sum(), abs=1e-9)


def test_soft_and_binary_masks_of_a_record_file(tmp_path):
    logits = np.stack([np.where(rectangle(*c), 40, -40) for c in (A, B)])
    (tmp_path / "soft").mkdir()
    Image.fromarray((logits.reshape(-1, SIZE) + 128).astype(np.uint8)).save(tmp_path / "soft" / "1.png")
    truth, soft = image(1, [A, B]), image(1, [B, A])
    for region, index in zip(soft.regions, (1, 0), strict=True):
        region.mask, region.logits = None, {"file": "soft/1.png", "index": index, "count": 2}
    read = load_predictions(write_records(tmp_path / "p.json", [soft]), [truth])
    assert score([truth], read).figures == {"giou": 1.0, "ciou": 1.0}
    soft.regions[0].logits = {"file": "../1.png", "index": 0, "count": 2}
    with pytest.raises(DataError, match="leaves its folder"):
        load_predictions(write_records(tmp_path / "p.json", [soft]), [truth])


def test_the_token_can_be_another():
    truth, predictions = [image(1, [A])], [image(1, [B], answer="USER: x ASSISTANT: it is <s1> <s2>.")]
    assert column(score(truth, predictions, seg_token="<s1> <s2>"), "answer") == [" it is (1)."]
    with pytest.raises(UsageError, match="seg_token is empty"):
        score(truth, predictions, seg_token="")


def loose(record):
    record.regions.append(Region(9, mask=encode_mask(rectangle(*A))))
    return record


@pytest.mark.fault("R12")
@pytest.mark.parametrize(
    ("prediction", "message"),
    [
        (image(1, [A], [B]), r"numbers of questions differ(.|\n)*2 answered"),
        (image(1, [A], text="when?"), r"answer is to another question(.|\n)*question 0(.|\n)*when"),
        (loose(image(1, [A])), r"1 predicted mask\(s\) answer no question(.|\n)*9"),
        (replace(image(1, [A]), conversations=((Turn("assistant", "", (1, 1)),),)), "one twice"),
        (replace(image(1, [A]), conversations=((Turn("assistant", "", (5,)),),)), r"regions that are unknown(.|\n)*5"),
        (replace(image(1, [A]), regions=[Region(1)]), r"no mask(.|\n)*predicted mask 1"),
        (replace(image(1, [A]), regions=[Region(1, mask={"size": [3, 3], "counts": [9]})]), "differs in size"),
        (replace(image(1, [A]), regions=[Region(1, mask={"size": [12, 12], "counts": [9]})]), "do not fill its size"),
        (replace(image(1, [A]), regions=[Region(1), Region(1)]), "Ids occur twice"),
        (replace(image(1, [A]), regions=[Region(1, logits={"file": "no.png", "index": 0, "count": 1})]), "not exist"),
    ],
)
def test_answers_that_do_not_fit_are_refused(prediction, message):
    with pytest.raises(DataError, match=message):
        score([image(1, [A])], [prediction])


def test_a_prompt_around_the_question_is_no_other_question():
    prompted = image(1, [A], text="<image>\nwhere?  Please answer with masks.")
    assert score([image(1, [A])], [prompted]).figures["giou"] == 1.0


def test_pixels_to_ignore_are_refused():
    truth = image(1, [A])
    truth.regions[0].ignore = encode_mask(rectangle(*A))
    with pytest.raises(DataError, match="pixels to ignore"):
        score([truth], [image(1, [A])])


MASK = {"size": [12, 12], "counts": [72, 72]}
FILE = [
    {
        "image": "a.png", "height": 12, "width": 12,
        "questions": [
            {"question": "q", "targets": [{"name_and_box": "(dog [0, 0, 1, 1])", "mask": MASK}], "predictions": [MASK]}
        ],
    }
]  # fmt: skip


def written(tmp_path, body):
    path = tmp_path / "muse.json"
    path.write_text(json.dumps(body))
    return path


def test_files_may_hold_binary_masks(tmp_path):
    path = written(tmp_path, FILE)
    truth, _ = load_ground_truth(path)
    assert score(truth, load_predictions(path, truth)).figures == {"giou": 1.0, "ciou": 1.0}


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("predictions", -1, "negative number"),
        ("predictions", True, '"predictions" is missing'),
        ("predictions", ["x"], r"predictions\[0\]"),
        ("targets", None, '"targets" is missing'),
        ("targets", [{"mask": MASK}], r'"name_and_box" is missing(.|\n)*questions\[0\](.|\n)*targets\[0\]'),
        ("question", 5, '"question" is missing'),
        ("generated_text", 5, '"generated_text" is missing'),
    ],
)
def test_malformed_files_name_their_place(tmp_path, key, value, message):
    body = json.loads(json.dumps(FILE))
    body[0]["questions"][0][key] = value
    path = written(tmp_path, body)
    with pytest.raises(DataError, match=message):
        load_predictions(path, load_ground_truth(path)[0])


def test_soft_masks_that_do_not_fill_their_file_are_refused(tmp_path):
    body = json.loads(json.dumps(FILE))
    body[0]["questions"][0]["predictions"] = 2
    path = written(tmp_path, body)
    (tmp_path / "logits").mkdir()
    Image.new("L", (12, 36)).save(tmp_path / "logits" / "a.png")
    truth, _ = load_ground_truth(path)
    with pytest.raises(DataError, match=r"do not fill their file(.|\n)*height 36"):
        score(truth, load_predictions(path, truth))


def test_published_annotations(coco_mini):
    for path in sorted((coco_mini / "muse").glob("*.json")):
        document = json.loads(path.read_text())
        truth, _ = load_ground_truth(path)
        assert [record.image_id for record in truth] == [item["id"] for item in document]
        for record, item in zip(truth, document, strict=True):
            assert [turns[0].text for turns in record.conversations] == item["questions"]
            assert [len(turns[1].region_ids) for turns in record.conversations] == [len(a) for a in item["answers"]]
            first = item["answers"][0][0]
            x, y, width, height = first["bbox"]
            assert record.regions[0].phrases == (f"({first['rephrased_name']} {[x, y, x + width, y + height]})",)
        assert score(truth, truth).figures == {"giou": 1.0, "ciou": 1.0}


def test_published_annotations_that_do_not_fit_are_refused(coco_mini, tmp_path):
    body = json.loads((coco_mini / "muse" / "muse_val.json").read_text())
    body[1]["answers"].pop()
    with pytest.raises(DataError, match=r"differ in number(.|\n)*\[1\]"):
        load_ground_truth(written(tmp_path, body))
