"""ViP-Bench: prompts, tries, aggregation by hand and the published files."""

from __future__ import annotations

import csv
import itertools
import json
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from locap.datasets.records import Record, Region, read_records, write_records
from locap.entry import main
from locap.evaluation.formats import load_ground_truth, load_predictions
from locap.evaluation.runner import evaluate_stored
from locap.evaluation.vip_bench import PROMPT, RELEASED, VipBench, parse_score
from locap.evaluation.vip_bench_tables import Grade, GradedItem, capability_table, combination_table
from locap.utils.errors import DataError, MissingDependencyError, UsageError

CAPABILITIES = {0: ["rec", "lang"], 1: ["ocr", "math"], 2: ["rec"], 3: ["lang", "rec"], 10: ["ocr"]}
SCORES = {0: (0.5, 1.0), 1: (0.0, 0.2), 2: (1.0, 1.0), 3: (0.3, 0.4), 10: (0.7, 0.7)}
REFERENCES = {0: "a dog<AND>red", 1: "-1 <OR> -5", 2: "a cat", 3: "yes", 10: "STOP"}
ANSWERS = {0: "a red dog, or a dog in red: a dog", 1: "x = -5", 2: "a cat", 3: "yes", 10: "Stop!"}
FIGURES = {"total": 0.58, "rec": 0.7, "lang": 0.55, "ocr": 0.4, "math": 0.1, "std": 0.08}
CAPABILITY_ROW = ["rec", "lang", "ocr", "math"], [70.0, 55.0, 40.0, 10.0]
COMBINATION_ROW = ["lang_rec", "math_ocr", "ocr", "rec"], [55.0, 10.0, 70.0, 100.0]


@pytest.fixture
def bench(tmp_path):
    """The benchmark's folder: five items, two splits, one picture."""
    folder = tmp_path / "ViP-Bench"
    meta = {
        f"v1_{n}": {
            "image": f"v1_{n}.png",
            "question": f"What is <obj> in {n}?",
            "answer": REFERENCES[n],
            "capability": CAPABILITIES[n],
            "image_source": "x.jpg",
        }
        for n in CAPABILITIES
    }
    for split, words in (("bbox", "the red box"), ("human", "the arrow")):
        (folder / split / "images").mkdir(parents=True)
        lines = [
            {"question_id": n, "image": f"v1_{n}.png", "text": f"What is in {words} of {n}?", "category": "x"}
            for n in [*CAPABILITIES, 99]
        ]
        (folder / split / "questions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    Image.new("RGB", (6, 4)).save(folder / "bbox" / "images" / "v1_0.png")
    (folder / "vip-bench-meta-data.json").write_text(json.dumps(meta))
    return folder


@pytest.fixture
def truth(bench):
    return load_ground_truth(bench / "vip-bench-meta-data.json")[0]


@pytest.fixture
def answers(tmp_path):
    path = tmp_path / "answers.json"
    path.write_text(json.dumps({f"v1_{n}": text for n, text in ANSWERS.items()}))
    return path


@pytest.fixture
def grades(tmp_path):
    """A grade file as the published evaluation writes it."""
    path = tmp_path / "model-bbox_gpt-4-0613-grade-2runs.json"
    path.write_text(json.dumps(grade_document(), indent=4))
    return path


def grade_document():
    return {
        f"v1_{n}": {"model": ["gpt-4-0613"] * 2, "content": [str(s) for s in scores], "score": list(scores)}
        for n, scores in SCORES.items()
    }


def predicted(truth, answers=ANSWERS):
    return [
        Record(r.image_id, r.height, r.width, regions=[Region(id=x.id, captions=(answers[x.id],)) for x in r.regions])
        for r in truth
    ]


def evaluate(truth, predictions=None, **options):
    options = {"vip_bench": options}
    (result,) = evaluate_stored(truth, predictions or predicted(truth), ["vip_bench"], [], options=options)
    return result


def same_figures(result):
    assert result.figures == pytest.approx(FIGURES, abs=1e-12)
    columns, values = CAPABILITY_ROW
    runs = "[50.0, 66.0]"
    table = result.tables["capabilities"]
    assert (table.columns, table.rows) == (
        ("", *columns, "total", "std", "runs"),
        [("predictions", *values, 58.0, 8.0, runs)],
    )
    columns, values = COMBINATION_ROW
    table = result.tables["capability_combinations"]
    assert (table.columns, table.rows) == (
        ("", *columns, "total", "std", "runs"),
        [("predictions", *values, 58.0, 8.0, runs)],
    )


def test_a_published_grade_file_gives_its_figures(truth, grades):
    result = evaluate(truth, judge_file=str(grades))
    same_figures(result)
    assert result.variant == "standard, bbox, judge gpt-4-0613, published prompt"
    assert result.counts == {
        "items": 5, "runs": 2, "unparsable": 0, "empty_answers": 0, "rec": 3, "lang": 2, "ocr": 2, "math": 1
    }  # fmt: skip
    assert any(grades.name in note for note in result.notes)
    assert any("not the 303 items" in note for note in result.notes)
    assert result.regions.rows[0] == (
        "v1_0", "lang_rec", 0.75, "0.5 1.0", "What is in the red box of 0?", "a dog<AND>red", ANSWERS[0]
    )  # fmt: skip
    assert evaluate(truth, judge_file=str(grades), runs="1").figures["total"] == 0.5


def test_the_command_exports_the_published_layouts(bench, answers, grades, tmp_path):
    command = ["evaluate", "--protocol", "vip_bench", "--ground-truth", str(bench / "vip-bench-meta-data.json")]
    options = [f"judge_file={grades}", f"export={tmp_path / 'out'}", "model_name=org/model"]
    assert main([*command, "--predictions", str(answers), "--option", *options, "--csv"]) == 0
    names = {path.name: path for path in (tmp_path / "out").iterdir()}
    stem = "org_model-bbox_gpt-4-0613"
    assert names.keys() == {
        f"{stem}-grade-2runs.json",
        f"{stem}-cap-score-2runs.csv",
        f"{stem}-cap-int-score-2runs.csv",
    }
    assert json.loads(names[f"{stem}-grade-2runs.json"].read_text()) == grade_document()
    assert names[f"{stem}-cap-score-2runs.csv"].read_text() == (
        ',rec,lang,ocr,math,total,std,runs\norg/model,70.0,55.0,40.0,10.0,58.0,8.0,"[50.0, 66.0]"\n'
    )
    assert names[f"{stem}-cap-int-score-2runs.csv"].read_text() == (
        ',lang_rec,math_ocr,ocr,rec,total,std,runs\norg/model,55.0,10.0,70.0,100.0,58.0,8.0,"[50.0, 66.0]"\n'
    )
    body = json.loads((tmp_path / "answers_results.json").read_text())
    assert body["results"][0]["figures"] == pytest.approx(FIGURES, abs=1e-12)
    with (tmp_path / "answers_results_vip_bench.csv").open() as file:
        assert len(list(csv.reader(file))) == 6


def test_what_cannot_be_exported_does_not_cost_the_figures(truth, grades, tmp_path):
    (tmp_path / "out").write_text("a file stands here")
    result = evaluate(truth, judge_file=str(grades), export=str(tmp_path / "out"))
    assert result.figures["total"] == 0.58
    assert "could not be written" in result.unavailable["export"]


@given(
    st.lists(
        st.tuples(
            st.sets(st.sampled_from(["rec", "ocr", "know", "math"]), min_size=1),
            st.lists(st.integers(0, 10).map(lambda n: n / 10), min_size=3, max_size=3),
        ),
        min_size=1,
        max_size=30,
    )
)
def test_the_tables_are_those_of_the_published_arithmetic(rows):
    items = [
        GradedItem(f"v1_{i}", tuple(sorted(names)), tuple(Grade("m", "", s) for s in scores))
        for i, (names, scores) in enumerate(rows)
    ]
    for table, groups in (
        (capability_table(items, "m"), lambda names: sorted(names)),
        (combination_table(items, "m"), lambda names: ["_".join(sorted(names))]),
    ):
        counts, sums = Counter(total=len(rows)), {"total": [0.0] * 3}
        for names, scores in rows:
            counts.update(groups(names))
            for run, name in itertools.product(range(3), [*groups(names), "total"]):
                sums.setdefault(name, [0.0] * 3)[run] += scores[run]
        percent = {name: np.array(values) / counts[name] * 100 for name, values in sums.items()}
        expected = {name: round(values.mean(), 1) for name, values in percent.items()}
        expected["std"] = round(percent["total"].std(), 1)
        assert {n: v for n, v in zip(table.columns, table.rows[0], strict=True) if n not in ("", "runs")} == expected


def test_the_judge_sees_a_table_with_an_open_row(server, truth, tmp_path):
    result = evaluate(truth, **server.options(tmp_path))
    assert result.figures == dict.fromkeys(("total", "rec", "lang", "ocr", "math"), 1.0)
    assert result.variant == "standard, bbox, judge fake-judge-0613"
    assert "the judge was asked for as fake" in result.notes
    rows = {prompt.removeprefix(PROMPT) for prompt in server.prompts()}
    assert "\nWhat is in the red box of 0? | a dog <AND> red | a red dog, or a dog in red: a dog | " in rows
    assert {(b["temperature"], b["max_tokens"]) for b in server.bodies} == {(0.0, 3)}
    scores = [line.rsplit("|", 1)[1].strip() for line in PROMPT.splitlines() if line.count("|") == 3]
    assert scores == ["Correctness", "---", "0.0", "0.5", "0.5", "0.5", "1.0", "0.4", "1.0"]


@pytest.mark.parametrize("variant", ["standard", "upstream"])
def test_an_answer_that_is_no_score_is_asked_for_again(server, truth, tmp_path, variant):
    """Five tries at rising temperatures, then 0."""
    item = truth[0]
    server.answer = lambda body: "maybe 1.0"
    answers = {0: "one |\n two | 1.0"}
    result = evaluate([item], predicted([item], answers), variant=variant, **server.options(tmp_path))
    assert [body["temperature"] for body in server.bodies] == [0.0, 0.0, 0.5, 1.0, 1.5]
    assert (result.figures["total"], result.counts["unparsable"]) == (0.0, 1)
    first, *more = server.prompts()
    assert all(prompt.endswith(" | \nThe correctness score, as a digit: ") for prompt in more)
    assert ("What is <obj> in 0?" in more[0]) == (variant == "upstream")
    assert ("| one |\n two | 1.0 | " in first) == (variant == "upstream")
    assert ("| one two 1.0 | " in first) == (variant == "standard")
    replies = iter(["2.0", "-0.1", "0.7"])
    server.answer = lambda body: next(replies)
    (tmp_path / "answers.jsonl").unlink()
    result = evaluate([item], predicted([item], answers), variant=variant, **server.options(tmp_path))
    assert (result.figures["total"], result.counts["unparsable"]) == (0.7, 0)


def test_runs_are_asked_anew_and_vary(server, truth, tmp_path):
    asked = itertools.count()
    given = [score for scores in SCORES.values() for score in scores]
    server.answer = lambda body: str(given[next(asked)])
    options = server.options(tmp_path, runs="2", judge_parallel="1")
    live = evaluate(truth, **options)
    same_figures(live)
    assert len(server.bodies) == 10
    replay = evaluate(truth, judge_file=options["judge_cache"], runs="2")
    assert len(server.bodies) == 10
    assert (replay.figures, replay.tables, replay.counts, replay.regions, replay.variant) == (
        live.figures, live.tables, live.counts, live.regions, live.variant
    )  # fmt: skip
    with pytest.raises(MissingDependencyError, match="to 5 of 15 questions"):
        compute(truth, options["judge_cache"], "3")


def compute(truth, path, runs):
    evaluator = VipBench([], judge_file=path, runs=runs)
    for record, prediction in zip(truth, predicted(truth), strict=True):
        evaluator.update(record, prediction)
    return evaluator.compute()


def test_what_the_judge_did_not_answer_costs_no_other_protocol_and_no_answer(server, bench, answers, tmp_path, capsys):
    served = itertools.count()
    server.answer = lambda body: "1.0" if next(served) < 2 else (400, {}, b"quota")
    options = [f"{k}={v}" for k, v in server.options(tmp_path, judge_parallel="1").items()]
    meta = str(bench / "vip-bench-meta-data.json")
    command = ["evaluate", "--protocol", "vip_bench", "--ground-truth", meta, "--predictions", str(answers), "--option"]
    assert main([*command, *options]) == 5
    assert "HTTP 400 quota" in capsys.readouterr().out.replace("\n", " ")
    body = json.loads((tmp_path / "answers_results.json").read_text())
    assert (body["results"][0]["figures"], list(body["results"][0]["unavailable"])) == ({}, ["all figures"])
    server.answer, server.bodies[:] = lambda body: "1.0", []
    assert main([*command, *options]) == 0  # the same command goes on
    assert len(server.bodies) == 3


def test_judges_splits_and_prompts_never_stand_under_one_name(server, bench, truth, tmp_path):
    human, _ = load_ground_truth(bench / "vip-bench-meta-data.json", bench / "human")
    prompt = tmp_path / "prompt.txt"
    prompt.write_text("Grade.\n")
    options = server.options(tmp_path)
    names = [evaluate(truth, **options).variant, evaluate(human, **options).variant]
    names += [evaluate(truth, variant="upstream", **options).variant]
    names += [evaluate(truth, prompt_file=str(prompt), **options).variant]
    assert server.prompts()[-1].startswith("Grade.\n\nWhat is in")
    server.model = "another"
    names += [evaluate(truth, **options | {"judge": "b"}).variant, evaluate(truth, variant="containment").variant]
    assert len(set(names)) == len(names) == 6
    with pytest.raises(DataError, match="several splits"):
        evaluate([truth[0], *human[1:]], **options)


def test_answers_of_several_models_are_said_to_be_mixed(server, truth, tmp_path):
    count = itertools.count()

    def answer(body):
        server.model = f"m{next(count) % 2}"
        return "1.0"

    server.answer = answer
    result = evaluate(truth, **server.options(tmp_path, judge_parallel="1"))
    assert result.variant == "standard, bbox, judge m0 + m1"
    assert any("several models answered" in note for note in result.notes)


def test_containment_is_no_judge(truth):
    result = evaluate(truth, variant="containment")
    assert (result.figures["total"], result.variant) == (1.0, "containment, bbox")
    assert any("not a ViP-Bench score" in note for note in result.notes)
    wrong = {**ANSWERS, 1: "x = 5", 10: ""}
    result = evaluate(truth, predicted(truth, wrong), variant="containment")
    assert (result.figures["total"], result.figures["ocr"], result.figures["rec"]) == (0.6, 0.0, 1.0)
    assert result.counts["empty_answers"] == 1
    with pytest.raises(UsageError, match=r"has no judge(.|\n)*judge"):
        VipBench([], variant="containment", judge="m")
    with pytest.raises(UsageError, match=r"has no judge(.|\n)*runs"):
        VipBench([], variant="containment", runs="2")


@pytest.mark.parametrize(
    ("content", "score"),
    [
        ("1", 1.0), ("0.5 because", 0.5), (" 0.4\n", 0.4), (".5", 0.5), ("+1.", 1.0), ("1e-1", 0.1), ("-0.0", 0.0),
        ("", None), ("nan", None), ("inf", None), ("1.1", None), ("-0.1", None), ("0.5.", None), ("1_0", None),
        ("0_1", None), ("Score: 1", None), ("\u0661", None),
    ],
)  # fmt: skip
def test_the_first_word_is_the_score(content, score):
    assert parse_score(content) == score


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda g: g.pop("v1_2"), "unavailable", "lacks grades of 1 of 5 questions(.|\n)*v1_2"),
        (lambda g: [c.pop() for c in g["v1_2"].values()], "unavailable", "lacks grades of 1 of 5 questions"),
        (lambda g: g.update(v1_77=g["v1_2"]), DataError, "1 grades are of no item(.|\n)*v1_77"),
        (lambda g: g["v1_2"]["score"].pop(), DataError, "Not the grades of an item(.|\n)*v1_2"),
        (lambda g: g["v1_2"].pop("model"), DataError, "Not the grades of an item"),
        (lambda g: g.update(v1_2=[]), DataError, "Not the grades of an item"),
        (lambda g: g["v1_2"].update(score=[1.5, 0]), DataError, "Not a grade(.|\n)*v1_2"),
        (lambda g: g["v1_2"].update(score=[True, 0]), DataError, "Not a grade"),
        (lambda g: g["v1_2"].update(score=["1", 0]), DataError, "Not a grade"),
        (lambda g: g["v1_2"].update(content=[1, 0]), DataError, "Not a grade"),
        (lambda g: g.clear(), DataError, "holds no answers"),
    ],
)
def test_a_grade_file_that_does_not_fit(truth, grades, change, error, message):
    document = grade_document()
    change(document)
    grades.write_text(json.dumps(document))
    if error == "unavailable":
        error = MissingDependencyError
        with pytest.raises(error, match=message):
            compute(truth, str(grades), None)
        assert evaluate(truth, judge_file=str(grades)).figures == {}
    else:
        with pytest.raises(error, match=message):
            evaluate(truth, judge_file=str(grades))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "not said which model judges"),
        ({"runs": "0"}, "runs is no number"),
        ({"runs": "many"}, "runs is no number"),
        ({"judge_url": "http://h/v1"}, "asks nobody(.|\n)*judge_url"),
        ({"variant": "upstrem"}, "use upstream"),
    ],
)
def test_wrong_options(grades, options, message):
    stored = {} if not options else {"judge_file": str(grades)}
    with pytest.raises(UsageError, match=message):
        VipBench([], **stored, **options)


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_ranks_and_order_change_nothing(truth, grades, ranks):
    expected = evaluate(truth, judge_file=str(grades))
    pairs = list(zip(truth, predicted(truth), strict=True))
    for order in (pairs, pairs[::-1], pairs[2:] + pairs[:2]):
        parts = [VipBench([], judge_file=str(grades)) for _ in range(ranks)]
        for index, pair in enumerate(order):
            parts[index % ranks].update(*pair)
        for part in parts[1:]:
            parts[0].merge_state(json.loads(json.dumps(part.state())))
        assert parts[0].compute() == expected


@given(st.permutations(range(5)), st.lists(st.sampled_from(["a dog red", "x = -1", "", "yes"]), min_size=5, max_size=5))
def test_the_order_of_images_and_predictions_is_free(order, texts):
    truth = [
        Record(f"v1_{n}", 0, 0, regions=[
            Region(id=n, expressions=("?",), captions=(REFERENCES[n],), attributes={"capability": ",".join(names)})
        ])
        for n, names in CAPABILITIES.items()
    ]  # fmt: skip
    predictions = predicted(truth, dict(zip(CAPABILITIES, texts, strict=True)))
    expected = evaluate(truth, predictions, variant="containment")
    shuffled = evaluate([truth[i] for i in order], predictions[::-1], variant="containment")
    assert shuffled == expected
    assert evaluate(truth, predicted(truth), variant="containment").figures["total"] == 1.0


def test_forms_of_answers(bench, truth, answers, tmp_path):
    expected = load_predictions(answers, truth)
    assert [record.image_id for record in expected] == ["v1_0", "v1_1", "v1_2", "v1_3", "v1_10"]
    lines = tmp_path / "answers.jsonl"
    body = {"prompt": "?", "answer_id": "abc", "model_id": "m", "metadata": {}}
    lines.write_text(
        "".join(json.dumps({"question_id": n, "text": t, **body}) + "\n" for n, t in reversed(ANSWERS.items()))
    )
    assert load_predictions(lines, truth) == expected
    records = write_records(tmp_path / "records.json", expected)
    assert load_predictions(records, truth) == expected
    assert (truth[0].height, truth[0].width, truth[1].height) == (4, 6, 0)
    assert truth[0].image.endswith("bbox/images/v1_0.png")
    assert read_records(write_records(tmp_path / "truth.json", truth))[0] == truth


def test_predictions_of_images_that_the_truth_lacks_have_any_size(truth):
    predictions = predicted(truth)
    predictions[1].height, predictions[1].width = 480, 640
    assert evaluate(truth, predictions, variant="containment").figures["total"] == 1.0
    predictions[0].height = 5
    with pytest.raises(DataError, match="another size"):
        evaluate(truth, predictions, variant="containment")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"v1_0": "x", "v1_77": "y", "v1_5": "z"}', "2 prediction.s. are of no region(.|\n)*5, 77"),
        ('{"v1_0": "x"}', "4 image.s. have no prediction(.|\n)*v1_1"),
        ('{"v1_0": "x", "v1_1": null}', "v1_1(.|\n)*str"),
        ('{"v1_0": "x", "v2_1": "y"}', "Not the name of an item(.|\n)*v2_1"),
        ('{"v1_0": "x", "v1_00": "y"}', "Not the name of an item(.|\n)*v1_00"),
        ('{"v1_0": "x", "v1_0": "y"}', "occurs twice"),
        ("\xff", "not UTF-8"),
    ],
)
def test_answers_that_do_not_fit(truth, tmp_path, content, message):
    path = tmp_path / "p.json"
    path.write_bytes(content.encode("latin1"))
    with pytest.raises(DataError, match=message):
        load_predictions(path, truth)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ({"question_id": 0, "text": "x"}, "A question occurs twice(.|\n)*v1_0"),
        ({"question_id": "one", "text": "x"}, "Not the name of an item"),
        ({"question_id": -1, "text": "x"}, "Not the name of an item"),
        ({"question_id": True, "text": "x"}, "question_id"),
        ({"question_id": 1}, '"text" is missing'),
    ],
)
def test_answer_lines_that_do_not_fit(truth, tmp_path, line, message):
    path = tmp_path / "p.jsonl"
    first = {"question_id": 0, "text": "x", "prompt": "?"}
    path.write_text(json.dumps(first) + "\n" + json.dumps(line) + "\n")
    with pytest.raises(DataError, match=message):
        load_predictions(path, truth)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"capability": []}, "no list of names"),
        ({"capability": ["a,b"]}, "no list of names"),
        ({"capability": "rec"}, '"capability" is missing or of the wrong type'),
        ({"answer": " <AND> "}, "reference is empty"),
        ({"answer": None}, '"answer" is missing'),
        ({"image": "../x.png"}, "leaves its folder"),
        ({"question": 3}, '"question" is missing'),
    ],
)
def test_metadata_that_is_malformed(bench, change, message):
    path = bench / "vip-bench-meta-data.json"
    document = json.loads(path.read_text())
    document["v1_3"] |= change
    path.write_text(json.dumps(document))
    with pytest.raises(DataError, match=message):
        load_ground_truth(path)


def test_the_folder_says_which_split(bench):
    path = bench / "vip-bench-meta-data.json"
    truth, _ = load_ground_truth(path, bench / "human")
    assert truth[0].regions[0].expressions == ("What is in the arrow of 0?",)
    with pytest.raises(DataError, match=r"folder is of no split(.|\n)*bbox or human"):
        load_ground_truth(path, bench)
    questions = bench / "bbox" / "questions.jsonl"
    questions.write_text("\n".join(questions.read_text().splitlines()[1:]))
    with pytest.raises(DataError, match=r"1 item.s. have no question(.|\n)*v1_0"):
        load_ground_truth(path)
    (bench / "bbox" / "questions.jsonl").unlink()
    with pytest.raises(DataError, match="does not exist"):
        load_ground_truth(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t, p: p[0].regions.append(Region(id=0, captions=("again",))), "is given twice"),
        (lambda t, p: p[0].regions.append(Region(id=7, captions=("x",))), "is of no region"),
        (lambda t, p: p[0].regions.clear(), "1 question.s. have no prediction"),
        (lambda t, p: setattr(p[0].regions[0], "captions", ()), "is not one text"),
        (lambda t, p: setattr(p[0].regions[0], "captions", ("a", "b")), "is not one text"),
        (lambda t, p: setattr(t[0].regions[0], "captions", ()), "no ViP-Bench item"),
        (lambda t, p: setattr(t[0].regions[0], "attributes", {}), "no ViP-Bench item"),
        (lambda t, p: setattr(t[0].regions[0], "attributes", {"capability": "total"}), "no ViP-Bench item"),
        (lambda t, p: (setattr(t[1].regions[0], "id", 0), setattr(p[1].regions[0], "id", 0)), "item occurs twice"),
    ],
)
def test_records_that_do_not_fit(truth, change, message):
    predictions = predicted(truth)
    change(truth, predictions)
    with pytest.raises(DataError, match=message):
        evaluate(truth, predictions, variant="containment")


def test_nothing_to_score_is_undefined():
    assert VipBench([], variant="containment").compute().undefined == {"total": "there are no items"}


def test_only_the_released_items_go_without_a_note():
    """303 items, each capability as often as in the release."""
    names = [[] for _ in range(303)]
    place = 0
    for name, count in RELEASED.items():
        for _ in range(count):
            names[place % 303].append(name)
            place += 1

    def notes(count):
        truth = [
            Record(i, 0, 0, regions=[Region(id=i, expressions=("?",), captions=("a",), attributes={"capability": row})])
            for i, row in enumerate(map(",".join, names[:count]))
        ]
        return evaluate(truth, predicted(truth, dict.fromkeys(range(303), "a")), variant="containment").notes

    assert not any("not the 303 items" in note for note in notes(303))
    assert any("not the 303 items" in note for note in notes(302))
