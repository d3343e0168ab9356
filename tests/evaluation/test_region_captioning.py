"""Protocol region_captioning."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from locap.datasets.records import Record, Region
from locap.evaluation.region_captioning import RegionCaptioning, find_structure, group_objects
from locap.evaluation.results import ProtocolResult
from locap.evaluation.runner import evaluate_stored
from locap.utils.errors import DataError

BOX, OTHER_BOX = (0.0, 0.0, 2.0, 2.0), (1.0, 1.0, 3.0, 3.0)
VG_A = [
    Record(7, 4, 4, regions=[Region(7, captions=("a dog",))]),
    Record(9, 4, 4, regions=[Region(9, captions=("cat",))]),
]
VG_B = [
    Record(1, 4, 4, regions=[Region(11, captions=("a dog",)), Region(12, captions=("the cat",))]),
    Record(2, 4, 4, regions=[Region(13, captions=("grass",))]),
]
OBJECTS = [
    Record(1, 4, 4, regions=[
        Region(5, box_xyxy=BOX, expressions=("red dog", "the dog")),
        Region(6, box_xyxy=OTHER_BOX, expressions=("a cat",)),
    ]),
]  # fmt: skip
EXPRESSIONS = [
    Record(1, 4, 4, regions=[
        Region(50, box_xyxy=BOX, expressions=("red dog",)), Region(51, box_xyxy=BOX, expressions=("the dog",)),
        Region(52, box_xyxy=OTHER_BOX, expressions=("a cat",)),
    ]),
]  # fmt: skip
FILES = {"vg_a": VG_A, "vg_b": VG_B, "refcocog": OBJECTS, "refcocog_per_expression": EXPRESSIONS}
TEXT = st.lists(st.sampled_from(["a", "red", "dog", "cat", "sits", "..."]), max_size=5).map(" ".join)
REGIONS = st.lists(st.tuples(TEXT, st.lists(TEXT, max_size=2), st.booleans()), max_size=4)
PROPERTY = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def score(truth: list[Record], predictions: list[Record], variant: str = "standard") -> ProtocolResult:
    options = {"region_captioning": {"variant": variant}}
    (result,) = evaluate_stored(truth, predictions, ["region_captioning"], (), options=options)
    return result


def predict(truth: list[Record], caption: str | None = None) -> list[Record]:
    """Answer every region with its own first text, or with one caption."""

    def answer(region: Region) -> Region:
        own = (region.captions or region.expressions or ("",))[0]
        return Region(region.id, captions=(own if caption is None else caption,))

    return [replace(record, regions=[answer(region) for region in record.regions]) for record in truth]


@pytest.mark.parametrize(("variant", "items"), [
    ("vg_a", [(7, 7), (9, 9)]),
    ("vg_b", [(1, 11), (1, 12), (2, 13)]),
    ("refcocog", [(1, 5), (1, 6)]),
    ("refcocog_per_expression", [(1, 50), (1, 51), (1, 52)]),
])  # fmt: skip
def test_variants_score_their_files(quick_tokens, variant, items):
    truth = FILES[variant]
    result = score(truth, predict(truth), variant)
    assert [row[:2] for row in result.regions.rows] == items
    assert result.figures["rouge_l"] == 1.0
    assert score(truth, predict(truth)).figures["rouge_l"] == 1.0


@pytest.mark.parametrize("variant", FILES)
@pytest.mark.parametrize("other", FILES)
def test_variants_refuse_each_others_files(quick_tokens, variant, other):
    truth = FILES[other]
    if other.partition("_per")[0] == variant.partition("_per")[0]:  # the two of RefCOCOg share their files
        assert score(truth, predict(truth), variant).variant == variant
        return
    family = other.partition("_per")[0]
    message = rf"(?s)another protocol: CIDEr weighs words.*variant {variant}.*{family}.*--variant {family}"
    with pytest.raises(DataError, match=message):
        score(truth, predict(truth), variant)


def test_files_of_no_named_structure_are_for_standard(quick_tokens):
    per_image_ids = [replace(VG_B[0], image_id=i) for i in (1, 2)]
    for variant in FILES:
        with pytest.raises(DataError, match=r"(?s)4 regions in 2 images, of no named file.*--variant standard"):
            score(per_image_ids, predict(per_image_ids), variant)
    assert score(per_image_ids, predict(per_image_ids)).counts["captions"] == 4


def test_structure_is_that_of_the_regions_with_a_text():
    row = [3, "", ["a"], False, None]
    assert find_structure([(3, [row]), (4, [])]) == "vg_a"
    assert find_structure([(5, [row])]) is None
    assert find_structure([(5, [row, [4, "", [], False, None]])]) is None  # one item, under another id
    assert find_structure([]) is None


def test_expressions_of_an_object_are_its_references(quick_tokens):
    together = score(EXPRESSIONS, predict(EXPRESSIONS, "the dog"), "refcocog")
    assert together.regions.rows[0][-2:] == ("the dog", "red dog | the dog")
    objects = score(OBJECTS, predict(OBJECTS, "the dog"), "refcocog")
    assert objects.figures == together.figures
    apart = score(EXPRESSIONS, predict(EXPRESSIONS, "the dog"), "refcocog_per_expression")
    assert [row[-1] for row in apart.regions.rows] == ["red dog", "the dog", "a cat"]
    assert score(OBJECTS, predict(OBJECTS, "the dog"), "refcocog_per_expression").figures == apart.figures
    place = apart.regions.columns.index("rouge_l")
    assert [row[place] for row in apart.regions.rows] == pytest.approx([0.5, 1.0, 0.0])
    assert [row[place] for row in together.regions.rows] == pytest.approx([1.0, 0.0])


def test_rows_without_a_box_are_not_joined():
    rows = [[1, "a", ["x"], True, None], [2, "b", ["y"], True, None], [3, "c", ["x", "y"], True, [0, 0, 1, 1]]]
    assert group_objects(rows) == rows


def test_padding_crowds_and_regions_without_text_are_left_out(quick_tokens):
    regions = [
        Region(1, box_xyxy=BOX, expressions=("red dog",)), Region(2, box_xyxy=(0, 0, 0, 0), expressions=("pad",)),
        Region(3, is_crowd=True, expressions=("dogs",)), Region(4),
    ]  # fmt: skip
    truth = [Record(1, 4, 4, regions=regions)]
    answers = [replace(truth[0], regions=[Region(i, captions=("red dog",)) for i in (1, 2, 3)])]
    result = score(truth, answers, "refcocog_per_expression")
    assert (result.counts["padding"], result.counts["crowds"], result.counts["truth_without_caption"]) == (1, 1, 1)
    assert (result.counts["captions"], result.figures["rouge_l"]) == (1, 1.0)
    assert score(truth, answers).counts["captions"] == 2


def test_a_record_with_captions_only_is_a_region(quick_tokens):
    truth = [Record(i, 0, 0, captions=("a dog", "one dog")) for i in ("x", "y")]
    result = score(truth, [Record(i, 0, 0, captions=("one dog",)) for i in ("x", "y")])
    assert (result.figures["rouge_l"], result.regions.rows[0][:2]) == (1.0, ("x", "x"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda regions: regions[:1], r"(?s)1 region\(s\) have no prediction.*image_id 1.*region ids 12"),
        (lambda regions: [*regions, Region(99)], r"(?s)1 predicted region\(s\) are not in the ground truth.*99"),
        (lambda regions: [*regions, regions[0]], r"(?s)1 region\(s\) are listed twice.*prediction.*11"),
        (lambda regions: [regions[0], Region(12, captions="cat")], "not (a list of texts|text)"),
        (lambda regions: [regions[0], Region(12, captions=(3,))], "not (a list of texts|text)"),
    ],
)
def test_predictions_must_be_of_the_regions(change, message):
    predictions = predict(VG_B)
    predictions[0].regions = change(predictions[0].regions)
    with pytest.raises(DataError, match=message):
        score(VG_B, predictions)
    with pytest.raises(DataError, match=message):
        RegionCaptioning(()).update(VG_B[0], predictions[0])


def test_truth_must_name_each_region_once():
    twice = [replace(VG_B[0], regions=VG_B[0].regions * 2)]
    with pytest.raises(DataError, match=r"(?s)2 region\(s\) are listed twice.*image_id 1.*11, 12"):
        score(twice, predict(VG_B[:1]))


def test_empty_answers_score_zero_and_are_counted(quick_tokens):
    result = score(VG_B, predict(VG_B, ""))
    assert result.counts["predicted_without_caption"] == 3
    assert {round(value, 9) for value in result.figures.values()} == {0.0}
    assert score(VG_B, predict(VG_B, "...")).counts["predicted_without_word"] == 3


def _records(images):
    truth, predicted = [], []
    for i, regions in enumerate(images):
        ids = range(10 * i, 10 * i + len(regions))
        rows = list(zip(ids, regions, strict=True))
        truth.append(
            Record(i, 4, 4, regions=[Region(r, captions=tuple(texts), is_crowd=c) for r, (_, texts, c) in rows])
        )
        predicted.append(Record(i, 4, 4, regions=[Region(r, captions=(text,)) for r, (text, _, _) in rows]))
    return truth, predicted


@PROPERTY
@given(st.lists(REGIONS, min_size=1, max_size=5), st.randoms(use_true_random=False))
def test_neither_order_nor_number_of_ranks_matters(quick_tokens, images, random):
    truth, predicted = _records(images)
    expected = score(truth, predicted)
    pairs = list(zip(truth, predicted, strict=True))
    random.shuffle(pairs)
    for _, prediction in pairs:
        random.shuffle(prediction.regions)
    for ranks in (1, 2, 4):
        parts = [RegionCaptioning(()) for _ in range(ranks)]
        for index, pair in enumerate(pairs):
            parts[index % ranks].update(*pair)
        whole = RegionCaptioning(())
        for part in parts[::-1]:
            whole.merge_state(json.loads(json.dumps(part.state())))
        assert whole.compute() == expected


@PROPERTY
@given(st.lists(REGIONS, min_size=1, max_size=5))
def test_a_region_can_be_answered_once_only(quick_tokens, images):
    truth, predicted = _records(images)
    predicted[0].regions *= 2
    if predicted[0].regions:
        with pytest.raises(DataError, match="listed twice"):
            score(truth, predicted)
