"""What goes wrong for users, journey by journey: every mistake has a test that reads its message."""
# ruff: noqa: E501 - a line per mistake

from __future__ import annotations

import ast
import errno
import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image

import locap
from locap.datasets.shapes import CATEGORIES
from locap.inference.asks import Ask
from locap.inference.captioner import Captioner
from locap.modeling.schemas import MODEL_SCHEMAS
from locap.modeling.systems import find_system
from locap.utils.config import load_config, save_config
from locap.utils.endings import describe
from locap.utils.errors import DataError, LocapError, UsageError
from locap.utils.files import write_tensors

TESTS = Path(__file__).resolve().parents[1]
QUICKSTART = TESTS.parent / "configs" / "quickstart.yaml"


class Line(NamedTuple):
    """A command line, its exit code and what is said; {model} stands for a model folder, {qs} for the quickstart's."""

    words: str
    code: int
    says: tuple[str, ...]


class Call(NamedTuple):
    """A call from Python, what it raises and what that says."""

    call: Callable[[Captioner], object]
    kind: type[LocapError]
    says: tuple[str, ...]


def line(words: str, code: int, *says: str) -> Line:
    return Line(words, code, says)


def call(does: Callable, kind: type[LocapError], *says: str) -> Call:
    return Call(does, kind, says)


JOURNEYS: dict[int, list[tuple[str, str | Line | Call]]] = {
    1: [  # install
        ("has no compiler", "ops/test_build.py::test_no_compiler_is_said_once_and_the_reference_runs"),
        ("chooses kernels that cannot be built", "ops/test_build.py::test_a_chosen_backend_that_cannot_be_built_raises_with_the_compilers_words"),
        ("has kernels for another torch", "ops/test_build.py::test_backends_that_do_not_fit"),
        ("has nvcc of another CUDA", "trainer/test_doctor.py::test_nvcc_of_another_cuda_is_named"),
        ("has no nvcc", "trainer/test_doctor.py::test_gpus_and_kernels_are_named"),
        ("has a driver that is too old", "trainer/test_doctor.py::test_torch_and_driver"),
        ("has a torch that cannot be imported", "trainer/test_doctor.py::test_a_torch_that_cannot_be_imported"),
        ("has versions that are too old", "trainer/test_doctor.py::test_versions_are_compared_with_what_is_required"),
        ("has no optional packages", "trainer/test_doctor.py::test_missing_and_broken_optional_packages_are_yellow"),
        ("has no supervision", "inference/test_results.py::test_without_supervision_it_says_what_to_install"),
        ("has no detectron2", "datasets/test_detectron2.py::test_without_the_library_the_message_says_what_to_do"),
        ("imports Hugging Face's datasets in the clone", "packaging/test_wheel.py::test_import_datasets_in_the_clone_is_hugging_face_or_an_honest_error"),
        ("has no GPU", "trainer/test_distributed.py::test_asking_for_a_missing_gpu_names_the_way_out"),
        ("misspells a command", line("trian", 2, "invalid choice: 'trian'", "did you mean train?")),
        ("gives no command", line("", 2, "required: COMMAND", "locap --help")),
    ],
    2: [  # data
        ("has no panoptic JSON", "datasets/test_readers.py::test_missing_data_sets_say_what_to_set"),
        ("has no folder of PNGs", "datasets/test_readers.py::test_a_missing_folder_is_named"),
        ("has PNGs of another JSON", "datasets/test_readers.py::test_png_and_json_that_disagree_are_counted_both_ways"),
        ("lacks an image of the JSON", "datasets/test_readers.py::test_json_that_names_an_absent_image"),
        ("has malformed annotations", "datasets/test_readers.py::test_wrong_annotations_are_named"),
        ("has a file of one's own that is malformed", "datasets/test_own_files.py::test_what_is_wrong_is_told_with_its_place"),
        ("has a set in part", "datasets/test_data_command.py::test_what_is_missing_comes_with_the_paths_tried_and_the_command"),
        ("has another number of records or images", "datasets/test_data_command.py::test_a_missing_image_and_a_wrong_number_of_records_are_found"),
        ("has a damaged image", "datasets/test_data_command.py::test_a_flipped_byte_that_still_decodes_is_found_by_its_checksum"),
        ("has no network", "datasets/test_data_command.py::test_no_network_ends_with_5_and_the_files_to_bring"),
        ("downloads a login page", "datasets/test_download.py::test_a_login_page_is_told_from_the_file"),
        ("has another checksum", "datasets/test_download.py::test_a_wrong_length_and_a_wrong_checksum_show_both_values"),
        ("has a full disk", "datasets/test_data_command.py::test_download_refuses_a_full_disk_before_it_asks"),
        ("must fetch by hand", "datasets/test_data_command.py::test_what_cannot_be_fetched_says_how_by_hand"),
        ("converts to what exists or cannot be", "datasets/test_convert.py::test_outputs_that_are_refused"),
        ("converts what is no data set", "datasets/test_convert.py::test_sources_that_are_refused"),
        ("misspells a set", line("data download cocoo --root .", 2, "'cocoo'", "did you mean coco?", "localized_narratives")),
        ("misspells a split", line("data show shapes_vl", 2, "'shapes_vl'", "did you mean shapes_val?")),
        ("misspells an action", line("data lst", 2, "invalid choice: 'lst'", "did you mean list?")),
        ("gives no root", line("data verify coco", 2, "folder of the data sets is not given", "export DETECTRON2_DATASETS=")),
        ("gives a root that is not there", line("data verify coco --root nowhere", 3, "does not exist", "{here}/nowhere")),
        ("verifies an empty root", line("data verify coco_panoptic --root empty", 3, "{here}/empty/coco/annotations/panoptic_")),
        ("trains without data", line("train --conf_files {p2c} --overrides DEVICE cpu", 3, "needs a folder to be read from", "pix2cap_coco_train.json", "data download pix2cap_coco_train_with_sem_seg --root")),
        ("trains with a wrong root", line("train --conf_files {p2c} --overrides DEVICE cpu DATASETS.ROOT empty", 3, "{here}/empty/coco/annotations/pix2cap_coco_train.json", "data download pix2cap_coco_train_with_sem_seg --root empty")),
        ("converts broken JSON", line("data convert broken.json --to coco --output new.json", 3, "Malformed JSON", "broken.json:1:", "truncated")),
        ("converts another file", line("data convert other.json --to coco --output new.json", 3, "not known to be a data set", "'foo'", "data convert FILE --from FORMAT --to jsonl --output NEW.jsonl")),
        ("converts over the source", line("data convert other.json --from coco --to coco --output other.json", 2, "not overwritten", "another --output")),
        ("converts to no format", line("data convert shapes_val --to cocoa --output x.json", 2, "invalid choice: 'cocoa'", "did you mean coco?")),
        ("writes below a file", line("data show shapes_val --count 1 --output a.png/x.png", 2, "cannot be opened or written", "a.png")),
    ],
    3: [  # configure
        ("misspells keys, gives wrong types and contradictions", "reliability/test_user_errors.py::test_every_mistake_has_one_message_and_its_code"),
        ("leaves out values", "reliability/test_user_errors.py::test_everything_that_is_missing_is_told_at_once"),
        ("waits for the message", "reliability/test_user_errors.py::test_configuration_mistakes_are_told_within_three_seconds"),
        ("includes in a circle", "reliability/test_user_errors.py::test_cycles_of_includes_show_the_way_round"),
        ("writes 1e-4, which YAML reads as text", "utils/test_config.py::test_override_is_read_as_the_type_of_its_key"),
        ("makes several mistakes at once", "utils/test_config.py::test_all_problems_are_reported_together"),
        ("misspells a file", line("configs show --conf_files {configs}/quickstrt.yaml", 2, "no such configuration file", "did you mean {configs}/quickstart.yaml?")),
        ("misspells a key", line("configs explain SOLVER.BASELR", 2, 'no configuration key "SOLVER.BASELR"', "did you mean SOLVER.BASE_LR?", "default: 0.0001")),
        ("writes a key in small letters", line("configs explain solver.base_lr", 2, "did you mean SOLVER.BASE_LR?")),
        ("gives a text for a number", line("train --conf_files {qs} --overrides SOLVER.BASE_LR fast", 2, "'fast' is not a finite number", "allowed:")),
        ("gives an image as configuration", line("train --conf_files a.png", 2, "not UTF-8 text", "a.png")),
        ("forgets the option's name", line("train quickstart.yaml", 2, "required: --conf_files", "locap train --help")),
        ("compares what is not there", line("configs diff nowhere.yaml {qs}", 2, "no such configuration file", "nowhere.yaml")),
        ("misspells a key from Python", call(lambda c: load_config([QUICKSTART], ["SEEED", "1"], model_schemas=MODEL_SCHEMAS), UsageError, "did you mean SEED?")),
    ],
    4: [  # launch
        ("has variables of two launchers", "trainer/test_launch.py::test_launchers_that_contradict_each_other_are_an_error"),
        ("has variables without sense", "trainer/test_launch.py::test_variables_without_sense_are_an_error"),
        ("starts more ranks than GPUs", "trainer/test_distributed.py::test_two_processes_on_one_gpu_are_an_error"),
        ("loses a rank at the start", "trainer/test_distributed.py::test_a_rank_that_does_not_come_is_named"),
        ("loses a rank on the way", "reliability/test_launchers.py::test_a_killed_rank_is_named"),
        ("has a rank that hangs", "reliability/test_launchers.py::test_a_stopped_rank_is_named"),
        ("has other files on another rank", "trainer/test_distributed.py::test_ranks_that_disagree_are_told_the_first_difference_once"),
        ("cannot reach rank 0", "trainer/test_launch.py::test_a_rank_0_that_does_not_answer_is_told_with_the_interface"),
        ("misspells the host", "trainer/test_launch.py::test_a_host_that_cannot_be_resolved_is_told_at_once"),
        ("takes a port in use", "trainer/test_launch.py::test_a_port_in_use_that_all_know_is_an_error_naming_it"),
        ("has MPI's variables without mpi4py", "trainer/test_launch.py::test_rank_discovery"),
        ("wants to see ranks and GPUs", "trainer/test_doctor.py::test_two_processes_on_one_gpu_are_red"),
        ("asks for a GPU that is not there", line("train --conf_files {qs} --overrides DEVICE cuda SAVE_DIR runs", 5, "No GPU can be used here", "--overrides DEVICE cpu")),
    ],
    5: [  # watch
        ("is not logged in to wandb", "trainer/test_wandb_log.py::test_without_a_login_it_is_offline"),
        ("has no wandb", "trainer/test_wandb_log.py::test_without_the_package_there_is_a_warning"),
        ("has a wandb that hangs", "trainer/test_wandb_log.py::test_a_service_that_hangs_is_left_alone_too"),
        ("has no room for logs", "reliability/test_watching.py::test_a_disk_that_stays_full_is_said_at_the_end"),
        ("cannot write TensorBoard's curves", "reliability/test_watching.py::test_curves_that_cannot_be_written_are_done_without"),
        ("has a plain terminal", "reliability/test_watching.py::test_any_terminal_and_any_code_page"),
    ],
    6: [  # resume and fine-tune
        ("resumes what is no run", "trainer/test_run_folder.py::test_what_is_no_run_is_refused"),
        ("resumes with another configuration", "trainer/test_continuation.py::test_what_the_order_of_samples_hangs_on_may_not_change"),
        ("resumes another model", "reliability/test_runs.py::test_a_run_of_another_model_is_refused_and_left_alone"),
        ("resumes with ranks that do not divide the batch", "reliability/test_runs.py::test_another_global_batch_and_ranks_that_do_not_divide_it_are_refused"),
        ("resumes a damaged checkpoint", "trainer/test_checkpoint.py::test_a_damaged_checkpoint_is_set_aside_and_the_one_before_is_used"),
        ("has no good checkpoint", "trainer/test_checkpoint.py::test_no_usable_checkpoint_says_what_is_wrong_with_each"),
        ("starts from weights of another shape", "integration/test_commands.py::test_weights_that_do_not_fit_are_reported_by_part"),
        ("starts from weights of something else", "modeling/test_loader.py::test_no_match_at_all"),
        ("starts from weights that lack parts", "modeling/test_loader.py::test_missing_names_are_grouped_by_part"),
        ("names a run that is not there", line("train --conf_files {qs} --overrides DEVICE cpu SAVE_DIR runs RESUME true RESUME_FROM nowhere", 4, "There is no run to go on with", "'nowhere'", "WEIGHT True")),
        ("names weights that are an image", line("train --conf_files {qs} --overrides DEVICE cpu SAVE_DIR runs WEIGHT true RESUME_FROM a.png", 4, "not a known kind of weights file", "a.png", ".safetensors")),
        ("names no weights", line("train --conf_files {qs} --overrides WEIGHT true", 2, "RESUME_FROM names no weights file")),
        ("names a file as run folder", line("train --conf_files {qs} --overrides DEVICE cpu SAVE_DIR a.png", 4, "run's folder cannot be made", "'a.png'", "--overrides SAVE_DIR")),
        ("lacks X-Decoder's weights", line("combine", 4, "xdecoder_focall_last.pt does not exist", "--xdecoder FILE")),
    ],
    7: [  # evaluate
        ("has no Java", "evaluation/test_captions.py::test_without_java_only_meteor_is_lost"),
        ("has no Java, in the report", "evaluation/test_formats.py::test_result_file_table_and_csv"),
        ("asks for SPICE without its files", "evaluation/test_image_captioning.py::test_optional_metrics_are_missing_only_when_asked_for"),
        ("has a SPICE that fails", "evaluation/test_spice.py::test_failure_is_reported_with_its_words"),
        ("lacks predictions of images", "evaluation/test_formats.py::test_predictions_must_cover_the_images"),
        ("gives files that are no predictions", "evaluation/test_formats.py::test_files_that_are_no_results"),
        ("misspells a protocol", "evaluation/test_formats.py::test_unknown_protocol_names_the_nearest"),
        ("leaves out or mixes arguments", "evaluation/test_command.py::test_wrong_arguments_say_what_is_allowed"),
        ("gives ViP-Bench other answers", "evaluation/test_vip_bench.py::test_answers_that_do_not_fit"),
        ("gives ViP-Bench wrong options", "evaluation/test_vip_bench.py::test_wrong_options"),
        ("writes an option otherwise", line("evaluate --ground_truth x --predictions y", 2, "unrecognized arguments: --ground_truth", "did you mean --ground-truth?")),
        ("misspells the protocol", line("evaluate --predictions other.json --ground-truth other.json --protocol panoptc", 2, "no such protocol", "'panoptc'", "use panoptic")),
        ("asks for another variant", line("evaluate --predictions other.json --ground-truth other.json --protocol panoptic --variant x", 2, "no such variant", "'x'", "standard")),
        ("gives another file", line("evaluate --predictions other.json --ground-truth other.json --protocol panoptic", 3, "no known form of ground truth", "other.json", "COCO panoptic JSON")),
        ("gives broken JSON", line("evaluate --predictions other.json --ground-truth broken.json --protocol panoptic", 3, "Malformed JSON", "broken.json:1:")),
        ("misspells the file", line("evaluate --predictions other.json --ground-truth othr.json --protocol panoptic", 3, "does not exist", "{here}/othr.json", "did you mean other.json?")),
        ("gives no weights", line("evaluate --conf_files {qs} --overrides DEVICE cpu", 2, "No weights are given", "RESUME_FROM")),
    ],
    8: [  # predict on the command line
        ("gives one's own boxes, points and masks wrongly", "integration/test_predict_command.py::test_mistakes_are_told"),
        ("gives what is not there", "integration/test_predict_command.py::test_what_is_not_there_is_told"),
        ("has a broken image among others", "integration/test_predict_command.py::test_a_broken_image_costs_itself"),
        ("has a broken image", "integration/test_commands.py::test_a_truncated_photograph_is_named"),
        ("gives an address", line("predict https://example.org/a.jpg --model {model}", 2, "Images are read from files only", "download it first")),
        ("exchanges image and model", line("predict {model} --model a.png", 2, "a file, not a model folder", "'a.png'", "config.yaml")),
        ("gives the weights as model", line("predict a.png --model {model}/model.safetensors", 2, "a file, not a model folder", "give {model}")),
        ("misspells the model", line("predict a.png --model {model}x", 2, "no such model folder", "did you mean")),
        ("gives no model", line("predict a.png", 2, "No model is given", "--model RUN_FOLDER")),
        ("misspells an option", line("predict a.png --modl {model}", 2, "unrecognized arguments: --modl", "did you mean --model?")),
        ("gives a video", line("predict v.mp4 --model {model}", 3, "format is not supported", "a video", "JPEG, PNG", "convert it to PNG")),
        ("gives a web page", line("predict page.jpg --model {model}", 3, "HTML page", "fetch the file again")),
        ("gives an empty folder", line("predict empty --model {model}", 3, "The folder has no images", "{here}/empty", ".png")),
        ("gives a pattern that fits nothing", line("predict *.tif --model {model}", 3, "No image fits the pattern", "'*.tif'")),
        ("misspells the image", line("predict b.png --model {model}", 3, "does not exist", "{here}/b.png", "did you mean a.png?")),
        ("writes a box with commas", line("predict a.png --model {model} --box 1,2,30,40", 2, "--box: expected 4 arguments", "--box X0 Y0 X1 Y1")),
        ("exchanges corners", line("predict a.png --model {model} --box 50 50 10 10", 2, "corners of the box are exchanged", "--box 10 10 50 50")),
        ("gives a box outside", line("predict a.png --model {model} --box -5 0 500 10", 2, "The box lies outside the image", "96 wide and 96 high")),
        ("gives an empty phrase", line("predict a.png --model {model} --text ''", 2, "The phrase is empty", "--text")),
        ("gives a mask of another size", line("predict a.png --model {model} --mask m50.png", 2, "another size than the image", "50 wide and 50 high", "96 wide and 96 high")),
        ("gives a black mask", line("predict a.png --model {model} --mask m0.png", 2, "The mask is empty")),
        ("gives JSON that is no mask", line("predict a.png --model {model} --mask other.json", 3, "Not a run-length encoding", "'foo'", '"counts"')),
        ("asks a system that takes no words", line("predict a.png --model {model} --box 1 2 30 40 --prompt what?", 2, "takes no prompt", "--box, --mask, --point, --text")),
        ("writes to a file", line("predict a.png --model {model} --output a.png", 2, "a file, not a folder", "--output")),
        ("names no device", line("predict a.png --model {model} --device tpu", 2, "no such device", "'tpu'", "cuda:1")),
        ("gives another file of regions", line("predict --model {model} --regions other.json", 3, "not known to be a data set", "data convert")),
    ],
    9: [  # Python
        ("gives what is no image", call(lambda c: c.set_image(b"bytes"), UsageError, "Not an image.", "'bytes'", "numpy array")),
        ("gives grey pixels", call(lambda c: c.set_image(np.zeros((9, 9), np.uint8)), DataError, "(9, 9)", '.convert("RGB")')),
        ("gives a batch of pixels", call(lambda c: c.set_image(torch.zeros(1, 3, 9, 9)), DataError, "(1, 3, 9, 9)", "pixels[0]")),
        ("gives integers", call(lambda c: c.set_image(np.zeros((9, 9, 3), int)), DataError, "int64", "uint8, or float")),
        ("gives floats to 255", call(lambda c: c.set_image(np.full((9, 9, 3), 200.0)), DataError, "out of range", "pixels / 255")),
        ("gives an address", call(lambda c: list(c.batch(["https://example.org/a.jpg"])), UsageError, "not fetched from the network", "curl")),
        ("asks before an image is set", call(lambda c: locap.load(folder_of(c)).caption_everything(), UsageError, "There is no image yet", "set_image")),
        ("asks nothing", call(lambda c: c.caption(), UsageError, "Nothing is asked", "caption_everything()")),
        ("gives three numbers", call(lambda c: c.caption(boxes=[[1, 2, 3]]), UsageError, "shape (1, 3)", "(x0, y0, x1, y1)")),
        ("gives a box without a list", call(lambda c: c.caption(boxes=[1, 2, 3, 4]), UsageError, "boxes=[(x0, y0, x1, y1)]")),
        ("exchanges corners", call(lambda c: c.caption(boxes=[[9, 9, 1, 1]]), UsageError, "exchanged", "1 1 9 9")),
        ("gives a mask of another size", call(lambda c: c.caption(masks=[np.ones((5, 5), bool)]), UsageError, "5 wide and 5 high", "96 wide and 96 high")),
        ("gives a mask of floats", call(lambda c: c.caption(masks=[np.ones((96, 96)) / 3]), UsageError, "Not a mask", "mask > 0.5")),
        ("locates a number", call(lambda c: c.locate(5), UsageError, "The phrase is empty", "5")),
        ("asks in another form", call(lambda c: list(c.batch([("a.png", [(1, 2, 3, 4)])])), UsageError, "Not a question", "(1, 2, 3, 4)", 'Ask("box"')),
        ("asks for another kind", call(lambda c: c.ask(c.see("a.png"), [Ask("bx", (1, 2, 3, 4))]), UsageError, "takes no bx", "box, mask, point")),
        ("gives three things for an item", call(lambda c: list(c.batch([("a.png", [], 3)])), UsageError, "Not an item of a batch", "(image, [Ask(")),
        ("gives one image for a batch", call(lambda c: c.batch("a.png"), UsageError, "list of images", "batch([image])")),
        ("misspells the folder", call(lambda c: locap.load(f"{folder_of(c)}x"), UsageError, "no such model folder", "did you mean")),
        ("loads nothing", call(lambda c: locap.load(None), UsageError, "No model is named", "owner/name on the hub")),
        ("misspells the device", call(lambda c: locap.load(folder_of(c), device="gpu"), UsageError, "no such device", "'gpu'", "auto, cpu, cuda")),
        ("names no type", call(lambda c: locap.load(folder_of(c), dtype="half"), UsageError, "'half'", "auto, fp32, bf16, fp16")),
        ("misspells a key", call(lambda c: locap.load(folder_of(c), overrides={"SEEED": 1}), UsageError, "did you mean SEED?")),
    ],
    10: [  # demo
        ("has no gradio", "inference/demo/test_page.py::test_missing_packages"),
        ("takes a port in use", "inference/demo/test_page.py::test_the_next_free_port"),
        ("opens it to every machine", "inference/demo/test_page.py::test_where_it_listens"),
        ("gives a password without a user", "inference/demo/test_page.py::test_a_wrong_password_argument"),
        ("uploads too much", "inference/demo/test_page.py::test_large_uploads_are_refused"),
        ("uploads what is no image", "inference/demo/test_page.py::test_files_that_are_no_images"),
        ("gives the page an address", "inference/demo/test_page.py::test_addresses_are_not_opened"),
        ("paints nothing", "inference/demo/test_callbacks.py::test_an_empty_painting_is_told"),
        ("clicks before there is an image", "inference/demo/test_callbacks.py::test_no_image_yet"),
        ("sends too much to the service", "inference/demo/test_endpoint.py::test_large_requests_are_refused"),
        ("sends the service no image", "inference/demo/test_endpoint.py::test_images_that_are_none"),
        ("sends the service impossible regions", "inference/demo/test_endpoint.py::test_regions_that_are_none"),
        ("gives no model", line("demo", 2, "required: --model", "locap demo --help")),
        ("misspells the model", line("demo --no-ui --model {model}x", 2, "no such model folder", "did you mean")),
        ("gives no port", line("demo --model {model} --port abc", 2, "invalid int value: 'abc'", "--port PORT")),
        ("gives a port that there is not", line("demo --no-ui --model {model} --port 99999", 2, "No port is free", "99999")),
        ("misspells an example", line("demo --no-ui --model {model} --port 0 --examples b.png", 3, "image does not exist", "did you mean a.png?")),
    ],
    11: [  # share
        ("loads a pickle that runs something", "integration/test_commands.py::test_a_pickle_that_would_run_something_is_refused"),
        ("loads a pickle with objects", "utils/test_untrusted_weights.py::test_objects_beside_the_tensors_are_named"),
        ("loads half a download", "utils/test_untrusted_weights.py::test_truncated_weights_are_named"),
        ("loads something else", "utils/test_untrusted_weights.py::test_other_files_are_recognised"),
        ("loads a folder with pickles", "inference/test_model_folder.py::test_pickles_and_code_in_a_folder_are_not_read"),
        ("is offline", "inference/test_model_folder.py::test_a_hub_name_without_network_says_which_files_go_where"),
        ("misspells a name on the hub", "utils/test_hub.py::test_what_the_hub_answers_is_told_with_the_way_out"),
        ("takes another kind of repository", "utils/test_hub_models.py::test_a_repository_of_something_else_is_told_before_anything_is_downloaded"),
        ("may not upload", "utils/test_hub_models.py::test_what_the_hub_refuses_is_told_with_the_way_out"),
        ("saves over other files", "inference/test_model_folder.py::test_a_folder_with_anything_else_is_left_alone"),
        ("does not say what to export", line("export --model {model}", 2, "required: --to, --output", "locap export --help")),
        ("exports to what there is not", line("export --model {model} --to onnx --output x", 2, "invalid choice: 'onnx'", "torch.export")),
        ("exports over a file", line("export --model {model} --to folder --output a.png", 2, "nothing is written over it", "a.png-model")),
        ("uploads without an owner", line("export --model {model} --to hub --output mine", 2, "no name of a repository", "'mine'", "owner/name")),
        ("exports a misspelt model", line("export --model {model}x --to folder --output new", 2, "no such model folder", "did you mean")),
        ("exports no model", line("export --to folder --output new", 2, "no configuration", "--model RUN_FOLDER")),
    ],
    12: [  # notebooks
        ("looks at a result in a notebook", "inference/test_results.py::test_a_notebook_shows_the_picture"),
        ("runs what the documentation shows", "integration/test_documentation.py"),
    ],
    13: [  # visualise
        ("has captions of thirty words", "inference/test_visualise.py::test_twelve_captions_of_thirty_words_stand_complete_and_inside"),
        ("has other scripts than the font", "inference/test_visualise.py::test_a_character_that_the_font_lacks_comes_from_one_that_has_it"),
        ("has more captions than fit beside", "inference/test_visualise.py::test_list_stands_beside_and_a_long_one_flows_on_below"),
        ("has masks of another size", "inference/test_visualise.py::test_masks_of_another_size_than_the_image_are_brought_to_it"),
        ("has no regions", "inference/test_html_page.py::test_a_result_without_regions_says_so"),
    ],
}  # fmt: skip
INLINE = [
    pytest.param(case, id=f"{row}-{what.replace(' ', '_')}")
    for row, cases in JOURNEYS.items()
    for what, case in cases
    if not isinstance(case, str)
]


def folder_of(captioner: Captioner) -> str:
    """Return where a captioner of `model` came from."""
    return str(captioner.cfg.RESUME_FROM)


@pytest.fixture(scope="module")
def model(tmp_path_factory, tiny) -> Path:
    """A model folder of the quickstart's system, tiny and untrained."""
    folder = tmp_path_factory.mktemp("journeys") / "model"
    cfg = load_config([QUICKSTART], tiny("RESUME_FROM", str(folder)), model_schemas=MODEL_SCHEMAS)
    system = find_system(cfg.MODEL.NAME)
    torch.manual_seed(0)
    built = system.model(cfg, CATEGORIES, system.tokenizer(cfg))
    folder.mkdir()
    save_config(cfg, folder / "config.yaml")
    write_tensors(folder / "model.safetensors", {k: v.contiguous() for k, v in built.state_dict().items()})
    return folder


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    """A folder of what users confuse with one another."""
    folder = tmp_path_factory.mktemp("files")
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (96, 96, 3), np.uint8)).save(folder / "a.png")
    Image.fromarray(np.full((50, 50), 255, np.uint8)).save(folder / "m50.png")
    Image.fromarray(np.zeros((96, 96), np.uint8)).save(folder / "m0.png")
    (folder / "v.mp4").write_bytes(b"\0\0\0\x18ftypmp42" + bytes(500))
    (folder / "page.jpg").write_text("<html>log in</html>")
    (folder / "broken.json").write_text('{"a": [1, 2')
    (folder / "other.json").write_text('{"foo": 1}')
    (folder / "empty").mkdir()
    return folder


@pytest.fixture(scope="module")
def captioner(model, files) -> Captioner:
    return locap.load(model, device="cpu").set_image(files / "a.png")


@pytest.mark.parametrize("case", INLINE)
def test_a_mistake_is_told(case, request, files, monkeypatch):
    monkeypatch.chdir(files)
    for name in ("DETECTRON2_DATASETS", "DATASETS"):
        monkeypatch.delenv(name, raising=False)
    check_line(case, request) if isinstance(case, Line) else check_call(case, request)


def check_line(case: Line, request: pytest.FixtureRequest) -> None:
    if "cuda" in case.words.split() and os.environ.get("CUDA_VISIBLE_DEVICES", "") != "":
        pytest.skip("this machine may have a GPU")
    model = request.getfixturevalue("model") if "{model}" in case.words else None
    configs = QUICKSTART.parent
    p2c = configs / "pix2cap_panoptic_segmentation_captioning.yaml"
    names = {"model": model, "qs": QUICKSTART, "configs": configs, "p2c": p2c, "here": Path.cwd()}
    words = [word.format(**names).strip("'") for word in case.words.split()]
    done: SimpleNamespace = request.getfixturevalue("locap")(*words)
    said = done.err + done.out
    assert done.code == case.code, said
    assert "Traceback" not in said
    assert "usage:" not in said
    assert said.count("error: ") <= 1, said
    for part in case.says:
        assert part.format(**names) in said


def check_call(case: Call, request: pytest.FixtureRequest) -> None:
    with pytest.raises(case.kind) as caught:
        case.call(request.getfixturevalue("captioner"))
    for part in case.says:
        assert part in str(caught.value)


def test_what_cannot_be_written_is_no_defect():
    denied = PermissionError(errno.EACCES, "Permission denied", "out/x.png")
    said, code = describe(denied)
    assert (code, "out/x.png" in said, "Permission denied" in said) == (2, True, True)
    assert "Traceback" not in said
    assert describe(OSError("no file"))[1] == 70


def test_weights_that_would_not_be_used_are_told(caplog):
    from locap.trainer.run_folder import continued

    cfg = load_config([QUICKSTART], ["RESUME_FROM", "some/run"], model_schemas=MODEL_SCHEMAS)
    assert continued(cfg) is cfg
    assert "RESUME_FROM some/run is not used: WEIGHT True" in caplog.text


def functions_of(path: Path) -> dict[str, list[str]]:
    """Return the tests of a file and their decorators, without importing it."""
    nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    functions = [node for node in nodes if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))]
    return {node.name: [ast.unparse(each) for each in node.decorator_list] for node in functions}


@pytest.mark.parametrize("row", range(1, 14))
def test_every_row_has_cases_and_its_tests_are_run(row):
    assert JOURNEYS[row]
    for what, case in JOURNEYS[row]:
        if isinstance(case, str):
            file, _, name = case.partition("::")
            found = functions_of(TESTS / file)
            assert name in found or (not name and any(test.startswith("test_") for test in found)), (what, case)
            decorators = " ".join(found.get(name, []))
            assert "mark.skip(" not in decorators, (what, case)
            assert "xfail" not in decorators, (what, case)
