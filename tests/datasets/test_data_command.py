"""``entry.py data``: what people see of the catalogue, downloads and checks."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from locap.datasets.prepare import catalogue, fetch
from locap.datasets.prepare.catalogue import CATALOGUE, DataSet, Download, find_sets
from locap.datasets.prepare.toy import write_toy
from locap.datasets.readers import DATASETS, SHAPES_SPLITS, TEXT_DATASETS
from locap.datasets.readers.pix2cap import Pix2CapReader
from locap.datasets.records import read_records
from locap.datasets.shapes import Shapes
from locap.entry import main
from locap.trainer import data_command
from locap.utils.errors import UsageError
from locap.utils.untrusted import read_image, unpacking

COCO_GROUNDS = dict(zip(range(101, 107), (92, 93, 95, 100, 107, 109), strict=True))  # drawn ground -> COCO's stuff


@pytest.fixture(autouse=True)
def no_root(monkeypatch):
    for name in ("DETECTRON2_DATASETS", "DATASETS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("COLUMNS", "300")


@pytest.fixture(scope="module")
def drawn(tmp_path_factory) -> Path:
    """The toy set, drawn once."""
    return write_toy(tmp_path_factory.mktemp("drawn"))


@pytest.fixture
def root(drawn, tmp_path, monkeypatch) -> Path:
    """A panoptic data set in the original layout, of which the catalogue expects just what is there."""
    shutil.copytree(drawn, tmp_path / "toy")
    toy, coco = tmp_path / "toy", tmp_path / "coco"
    (coco / "annotations").mkdir(parents=True)
    (toy / "images" / "val").rename(coco / "val2017")
    (toy / "panoptic_val").rename(coco / "panoptic_val2017")
    document = json.loads((toy / "annotations" / "pix2cap_val.json").read_text())
    for annotation in document["annotations"]:
        for segment in annotation["segments_info"]:
            segment["category_id"] = COCO_GROUNDS.get(segment["category_id"], segment["category_id"])
    (coco / "annotations" / "pix2cap_coco_val.json").write_text(json.dumps(document))
    made = dataclasses.replace(CATALOGUE["pix2cap"], records={"pix2cap_coco_val_with_sem_seg": 16})
    monkeypatch.setitem(catalogue.CATALOGUE, "pix2cap", made)
    return tmp_path


def verify(root: Path, *arguments: str) -> int:
    return main(["data", "verify", *arguments, "--root", str(root)])


def row(text: str, name: str) -> list[str]:
    """Return the cells of a table's row."""
    (line,) = [line for line in text.splitlines() if re.match(rf"\W+{re.escape(name)} ", line)]
    return [cell.strip() for cell in re.split("[│┃]", line)[1:-1]]


def flip(path: Path, place: int) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


def test_every_named_data_set_belongs_to_one_set():
    owned = [name for described in CATALOGUE.values() for name in described.records]
    assert sorted(owned) == sorted([*DATASETS, *TEXT_DATASETS])
    for described in CATALOGUE.values():
        assert described.licence
        assert described.needed_by
        assert described.downloads or described.by_hand or described is CATALOGUE["toy"]
        assert set(described.needs) <= set(CATALOGUE)


def test_what_is_fetched_is_what_is_read(tmp_path):
    """Put an empty file or folder at every target: every data set that nobody has to fetch by hand is then there."""
    for described in CATALOGUE.values():
        for download in described.downloads:
            assert download.url.startswith("https://")
            for target in download.gives:
                path = tmp_path / target
                (path if not path.suffix else path.parent).mkdir(parents=True, exist_ok=True)
                if path.suffix:
                    path.touch()
    for name in ("refcoco", "refcoco+", "refcocog"):  # folders that come out of archives, with these in them
        for file in ("refs(unc).p", "refs(umd).p", "instances.json"):
            (tmp_path / "refer_seg" / name / file).touch()
    presence = {name: data_command._presence(name, tmp_path) for name in CATALOGUE}
    by_hand = {"toy", "uninext", "muse", "vip_bench"}
    assert {name for name, state in presence.items() if state != "present"} == by_hand, presence


def test_names_of_configurations_lead_to_their_sets():
    found = find_sets(["region:vg_loca_test", "vg_densecap_test", "coco", "shapes_train", "coco_2017_val_captions"])
    assert found == {"vg": ("vg_loca_test", "vg_densecap_test"), "coco": None}
    with pytest.raises(UsageError, match="did you mean pix2cap_coco_val_with_sem_seg") as caught:
        find_sets(["pix2cap_coco_val_with_semseg"])
    assert caught.value.exit_code == 2


def test_list_shows_size_licence_and_what_is_there(root, capsys):
    assert main(["data", "list", "--root", str(root)]) == 0
    text = capsys.readouterr().out
    assert row(text, "pix2cap")[2:5] == ["not published", "Apache-2.0", "present"]
    assert row(text, "coco")[2::2] == ["20.4 GB", "1 of 6"]
    assert row(text, "muse")[2] == "by hand"
    assert f"root: {root}" in text
    assert main(["data", "list"]) == 0
    assert "no root is given" in capsys.readouterr().out


def test_everything_there_is_0_and_says_so(root, capsys, monkeypatch):
    assert verify(root, "pix2cap", "--deep") == 0
    assert row(capsys.readouterr().out, "pix2cap_coco_val_with_sem_seg")[1:] == ["ok", "16", "16", ""]
    for name in ("DETECTRON2_DATASETS", "DATASETS"):
        monkeypatch.setenv(name, str(root))
        assert main(["data", "verify", "pix2cap_coco_val_with_sem_seg"]) == 0
        monkeypatch.delenv(name)
    monkeypatch.chdir(root)
    assert main(["data", "verify", "pix2cap", "--root", "coco"]) == 0, "<root>/val2017, without coco/, is a layout too"


def test_a_configuration_says_what_to_verify_and_where(root, tmp_path, capsys):
    config = tmp_path / "c.yaml"
    config.write_text(
        "MODEL: {NAME: pix2cap_model}\n"
        f"DATASETS: {{ROOT: {root}, TRAIN: [shapes_train], TEST: [pix2cap_coco_val_with_sem_seg]}}\n"
    )
    assert main(["data", "verify", "--conf_files", str(config)]) == 0
    assert "pix2cap_coco_val_with_sem_seg" in capsys.readouterr().out
    assert main(["data", "verify", "--conf_files", str(config), "--overrides", "DATASETS.TEST", "[shapes_val]"]) == 2
    assert "drawn; they have no files" in capsys.readouterr().err


def test_what_is_missing_comes_with_the_paths_tried_and_the_command(root, capsys):
    assert verify(root, "coco_panoptic", "vip_bench") == 3
    text = capsys.readouterr().out
    assert row(text, "panoptic_train2017")[1:] == [
        "missing", "-", "118,287", "python entry.py data download coco_panoptic"
    ]  # fmt: skip
    assert f"tried {root}/coco/panoptic_train2017 or {root}/panoptic_train2017" in text
    assert f"tried {root}/coco/annotations/panoptic_val2017.json and {root}/annotations/panoptic_val2017.json" in text
    assert row(text, "panoptic_val2017")[1:4] == ["wrong count", "16", "5,000"]
    assert f"wrong count: panoptic_val2017: {root}/coco/panoptic_val2017" in text


def test_a_missing_image_and_a_wrong_number_of_records_are_found(root, capsys, monkeypatch):
    records = {"pix2cap_coco_val_with_sem_seg": 17}
    monkeypatch.setitem(CATALOGUE, "pix2cap", dataclasses.replace(CATALOGUE["pix2cap"], records=records))
    assert verify(root, "pix2cap") == 3
    assert row(capsys.readouterr().out, "pix2cap_coco_val_with_sem_seg")[1:4] == ["wrong count", "16", "17"]
    (root / "coco" / "val2017" / "000000000003.png").unlink()
    assert verify(root, "pix2cap") == 3
    text = capsys.readouterr().out
    assert row(text, "pix2cap_coco_val_with_sem_seg")[1] == "broken"
    assert "1 of 16 images named by the JSON are not there." in text
    assert "000000000003.png" in text


def test_deep_compares_images_segments_and_annotations(root, capsys):
    coco = root / "coco"
    image, png = coco / "val2017" / "000000000001.png", coco / "panoptic_val2017" / "000000000002.png"
    Image.new("RGB", (60, 50)).save(image)
    ids = np.array(Image.open(png))
    ids[ids[..., 0] == 1] = (7, 1, 0)
    Image.fromarray(ids).save(png)
    (coco / "val2017" / "000000000004.png").write_bytes(b"<html>login</html>")
    assert verify(root, "pix2cap") == 0, "nothing is opened"
    assert verify(root, "pix2cap", "--deep") == 3
    text = capsys.readouterr().out
    assert f"{image}: 60 x 50 pixels, 128 x 128 in the annotations" in text
    assert f"{png}: segments only in the JSON [1], only in the PNG [263]" in text
    assert "HTML" in text


@pytest.mark.fault("E2")
def test_a_flipped_byte_that_still_decodes_is_found_by_its_checksum(drawn, tmp_path, capsys):
    shutil.copytree(drawn, tmp_path / "toy")
    assert verify(tmp_path, "--write-checksums") == 0
    sums = tmp_path / "SHA256SUMS"
    assert re.fullmatch(r"([0-9a-f]{64}  toy/\S+\n){164}", sums.read_text())
    assert verify(tmp_path, "toy", "--deep") == 0
    drawing = tmp_path / "toy" / "images" / "val" / "000000000005.png"
    image, before = drawing.with_suffix(".jpg"), Image.open(drawing)
    before.save(image)
    drawing.unlink()
    assert verify(tmp_path, "toy", "--deep") == 0, "what is in no list is not compared"
    assert verify(tmp_path, "--write-checksums") == 0
    before = read_image(image)
    flip(image, image.stat().st_size // 2)
    assert read_image(image).shape == before.shape
    assert not np.array_equal(read_image(image), before), "it decodes, to another picture"
    capsys.readouterr()
    assert verify(tmp_path, "toy") == 0
    assert verify(tmp_path, "toy", "--deep") == 3
    assert f"broken: toy/images/val: {image}: another checksum than in SHA256SUMS" in capsys.readouterr().out


def test_checksums_follow_linked_folders_once(tmp_path, capsys):
    elsewhere, root = tmp_path / "elsewhere", tmp_path / "root"
    (root / "coco").mkdir(parents=True)
    (root / "downloads").mkdir()
    (root / "downloads" / "a.zip").touch()
    elsewhere.mkdir()
    (elsewhere / "a.jpg").write_bytes(b"a")
    (elsewhere / "loop").symlink_to(root)
    (root / "coco" / "train2017").symlink_to(elsewhere)
    assert verify(root, "--write-checksums") == 0
    assert (root / "SHA256SUMS").read_text() == f"{hashlib.sha256(b'a').hexdigest()}  coco/train2017/a.jpg\n"


def test_a_list_of_checksums_that_is_none_is_refused(root, capsys):
    (root / "SHA256SUMS").write_text("nonsense\n")
    assert verify(root, "pix2cap", "--deep") == 3
    assert "SHA256SUMS:1" in capsys.readouterr().err


def test_the_toy_set_can_be_read_in_both_formats(drawn, capsys):
    folder = drawn
    assert main(["data", "download", "toy", "--root", str(folder.parent)]) == 0, "a second time changes nothing"
    assert f"written: {folder}\nthere: toy; check with" in capsys.readouterr().err
    assert not list(folder.parent.glob(".toy*"))
    scenes = Shapes(16, split="val")
    reader = Pix2CapReader(
        folder / "annotations" / "pix2cap_val.json", folder / "images" / "val", folder / "panoptic_val"
    )
    records, categories, _ = read_records(folder / "records_val.json")
    assert len(reader) == len(records) == 16
    for index in (0, 15):
        for record in (reader[index], dataclasses.replace(records[index], image=str(folder / records[index].image))):
            assert np.array_equal(record.read_image(), scenes[index].read_image())
            assert [r.id for r in record.regions] == [r.id for r in scenes[index].regions]
        assert reader[index].regions[0].captions[0] == scenes[index].regions[0].captions[0]
        assert np.array_equal(reader[index].read_id_map(), scenes[index].id_map)
    assert categories == list(scenes.categories)


def test_files_of_ones_own_are_verified_too(drawn, tmp_path, capsys, monkeypatch):
    shutil.copytree(drawn, tmp_path / "toy")
    monkeypatch.chdir(tmp_path)
    assert main(["data", "verify", "toy/records_val.json"]) == 0
    assert re.search(r"toy/records_val\.json +│ ok +│ 16 ", capsys.readouterr().out)
    config = tmp_path / "mine.yaml"
    config.write_text(
        "MODEL: {NAME: pixelllm_model}\nDATASETS: {TRAIN: ['region:toy/records_val.json'], TEST: ['region:shapes_val']}"
    )
    assert main(["data", "verify", "--conf_files", str(config)]) == 0
    image = tmp_path / "toy" / "images" / "val" / "000000000003.png"
    image.write_bytes(b"none")
    assert main(["data", "verify", "toy/records_val.json"]) == 0, "nothing is opened"
    assert main(["data", "verify", "toy/records_val.json", "--deep"]) == 3
    assert "000000000003.png" in capsys.readouterr().out
    image.unlink()
    assert main(["data", "verify", "toy/records_val.json", "mine/none.json"]) == 3
    told = capsys.readouterr().out
    assert re.search(r"broken: toy/records_val\.json: 1 of 16 images named by the file are not there", told)
    assert "missing: mine/none.json" in told


def test_download_says_what_and_asks_first(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(unpacking, "free_bytes", lambda folder: 10**12)
    monkeypatch.setattr(sys.stdin, "isatty", lambda: False, raising=False)
    assert main(["data", "download", "coco", "--root", str(tmp_path)]) == 2
    text = capsys.readouterr()
    for word in ("train2017.zip", "19.3 GB", "https://s3.amazonaws.com/images.cocodataset.org/zips/train2017.zip"):
        assert word in text.out
    assert "licence of coco: annotations CC BY 4.0" in text.err
    assert "41.2 GB with what is unpacked" in text.err
    assert "add --yes" in text.err
    assert not any(tmp_path.iterdir())
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    monkeypatch.setattr("builtins.input", lambda question: "n")
    assert main(["data", "download", "pix2cap", "--root", str(tmp_path)]) == 2
    text = capsys.readouterr().err
    assert "needed too, if it is not there: coco_panoptic" in text
    assert "Nothing was fetched." in text


@pytest.mark.fault("K4")
def test_download_refuses_a_full_disk_before_it_asks(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(unpacking, "free_bytes", lambda folder: 10**9)
    assert main(["data", "download", "coco", "--yes", "--root", str(tmp_path)]) == 5
    text = capsys.readouterr().err
    assert "There is not enough disk space for the archives and what is in them." in text
    assert "1,000,000,000 are free" in text


def test_what_cannot_be_fetched_says_how_by_hand(tmp_path, capsys):
    assert main(["data", "download", "vip_bench", "--root", str(tmp_path)]) == 5
    assert f"--local-dir {tmp_path}/vip_bench" in capsys.readouterr().err


def test_no_network_ends_with_5_and_the_files_to_bring(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(fetch, "RETRIES", 0)
    gone = Download("http://127.0.0.1:9/val2017.zip", {"coco/val2017": "val2017"}, 815_585_330, md5="4" * 32)
    monkeypatch.setitem(CATALOGUE, "coco", DataSet("COCO", "CC", "all", (gone,)))
    assert main(["data", "download", "coco", "--yes", "--root", str(tmp_path)]) == 5
    text = capsys.readouterr().err
    assert "Connection refused" in text
    assert f"815,585,330 bytes, md5 {'4' * 32}\n    -> {tmp_path}/downloads/coco/val2017.zip" in text


def test_wrong_names_and_a_missing_root_name_the_way_out(tmp_path, capsys):
    assert verify(tmp_path, "cocco") == 2
    assert "did you mean coco?" in capsys.readouterr().err
    assert main(["data", "verify", "coco"]) == 2
    assert "--root FOLDER, or export DETECTRON2_DATASETS=FOLDER" in capsys.readouterr().err
    assert verify(tmp_path / "nowhere") == 3
    assert "does not exist" in capsys.readouterr().err
    assert verify(tmp_path) == 3
    assert "No data set is there." in capsys.readouterr().err


def test_other_actions_are_imported_when_they_are_asked_for():
    program = (
        "import sys\n"
        "from locap.entry import make_parser\n"
        "make_parser().parse_args(['data', 'list'])\n"
        "found = {'torch', 'locap.trainer.contact_sheet', 'locap.datasets.prepare.convert'} & set(sys.modules)\n"
        "assert not found, found\n"
    )
    package = Path(data_command.__file__).parents[1]
    program = f"import runpy; runpy.run_path({str(package / 'entry.py')!r}, run_name='entry')\n{program}"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert main_help("show") == 0


def main_help(action: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(["data", action, "--help"])
    return ended.value.code


def test_coco_mini_is_counted_in_every_layout(coco_mini, capsys):
    assert verify(coco_mini, "pix2cap_coco_val_with_sem_seg", "vg", "localized_narratives", "--deep") == 3
    text = capsys.readouterr().out
    assert row(text, "pix2cap_coco_val_with_sem_seg")[1:4] == ["wrong count", "13", "2,338"]
    assert row(text, "visual_genome_train")[1:4] == ["wrong count", "8", "77,398"]
    assert row(text, "ln_coco_val")[1:4] == ["wrong count", "13", "5,000"]
    assert "broken" not in text
    assert set(SHAPES_SPLITS).isdisjoint(CATALOGUE)
