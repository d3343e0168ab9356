"""locap's command line; `python entry.py --help` lists the commands.

Examples:
    python entry.py train    --conf_files configs/quickstart.yaml
    mpirun -n 8 python entry.py train --conf_files configs/... --overrides SOLVER.BASE_LR 1e-4 ...
    torchrun --nproc_per_node 8 entry.py train ...
"""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path


def _register_package() -> None:
    """Make the clone importable as ``locap`` from any directory name, and keep its folders off ``sys.path``."""
    root = Path(__file__).resolve().parent
    sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != root]
    if "locap" in sys.modules:
        return
    spec = importlib.util.spec_from_file_location("locap", root / "__init__.py", submodule_search_locations=[str(root)])
    module = importlib.util.module_from_spec(spec)
    sys.modules["locap"] = module
    spec.loader.exec_module(module)


if __name__ != "locap.entry":  # run as a script, or as the main module of a spawned worker
    _register_package()

import argparse  # noqa: E402 - the package must exist first

from locap.evaluation.command import add_arguments as add_scoring_arguments  # noqa: E402
from locap.evaluation.command import compare_files, score_files  # noqa: E402
from locap.inference import command as predict  # noqa: E402
from locap.inference import export_command as export  # noqa: E402
from locap.inference.config_arguments import add_config_arguments, device_of, read_config  # noqa: E402
from locap.inference.demo import command as demo  # noqa: E402
from locap.trainer import configs_command as configs  # noqa: E402
from locap.trainer import data_command as data  # noqa: E402
from locap.trainer import doctor_command as doctor  # noqa: E402
from locap.trainer.launch import says_it  # noqa: E402
from locap.utils.arguments import CommandParser  # noqa: E402
from locap.utils.combine_weights import GRIT_FILE, OUTPUT_FILE, XDECODER_FILE, combine_files  # noqa: E402
from locap.utils.endings import describe  # noqa: E402
from locap.utils.logging import as_called, set_up_logging  # noqa: E402

MODULES = {
    "predict": (predict, "describe images: everything, or what is asked about"),
    "export": (export, "a model folder, weights for the original code, or the vision part; to disk or the hub"),
    "demo": (demo, "the same in the browser, and as a small HTTP service"),
    "data": (data, "list, download, verify, convert and show data sets"),
    "configs": (configs, "list, show, explain and compare configurations"),
    "doctor": (doctor, "what this machine has, and the command that mends what it lacks"),
}
# what a command needs beyond this is imported inside it: a wrong configuration is reported before torch is loaded


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns its exit code."""
    arguments = make_parser().parse_args(argv)
    set_up_logging()
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # else a lost connection prints the stack of torch's C++
    try:
        return arguments.command(arguments) or 0
    except (Exception, KeyboardInterrupt) as err:
        text, code = describe(err)
        if says_it(text):  # every process of a job may have come upon it
            sys.stderr.write(f"{as_called(text)}\n")
        return code


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of all commands."""
    parser = CommandParser(prog="locap", description="Region-level captioning: train, evaluate, predict.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    train = commands.add_parser("train", help="train a system")
    train.set_defaults(command=run_train)
    train.add_argument("--dry-run", action="store_true", help="build everything, show sizes and arithmetic, and stop")
    evaluate = commands.add_parser("evaluate", help="score weights, or stored predictions, on a data set")
    evaluate.set_defaults(command=run_evaluate)
    add_scoring_arguments(evaluate)
    evaluate.add_argument("--model", metavar="FOLDER", help="a model or run folder, scored on the data it was made for")
    for command in (train, evaluate):
        add_config_arguments(command, required=command is train)

    merge = commands.add_parser("combine", help="add GRiT's captioner to X-Decoder's weights, to train Pix2Cap from")
    merge.set_defaults(command=run_combine)
    merge.add_argument("--xdecoder", default=XDECODER_FILE, metavar="FILE", help="default: %(default)s")
    merge.add_argument("--grit", default=GRIT_FILE, metavar="FILE", help="default: %(default)s")
    merge.add_argument("--output", default=OUTPUT_FILE, metavar="FILE", help="default: %(default)s")

    quickstart = commands.add_parser("quickstart", help="train a tiny system on drawn scenes and write a report")
    quickstart.set_defaults(command=run_quickstart)
    quickstart.add_argument("--output", default="output/quickstart", metavar="FOLDER", help="default: %(default)s")
    add_config_arguments(quickstart, required=False)

    for name, (module, text) in MODULES.items():
        command = commands.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.")
        command.set_defaults(command=module.run)
        module.add_arguments(command)
    return parser


def run_train(arguments: argparse.Namespace) -> None:
    """Train, or show what training would do."""
    cfg = read_config(arguments)
    from locap.trainer.distributed import processes

    if arguments.dry_run:
        from locap.trainer.dry_run import dry_run as run
    else:
        from locap.trainer.experiment import train as run

    with processes(cfg, device_of(cfg)) as world:
        run(cfg, world)


def run_evaluate(arguments: argparse.Namespace) -> int:
    """Evaluate weights or stored predictions, or compare results; 5 when the machine lacked something for a figure."""
    if arguments.compare:
        return compare_files(arguments)
    if arguments.ground_truth or not (arguments.conf_files or arguments.model):
        return score_files(arguments)
    cfg = read_config(arguments)
    from locap.evaluation.report import exit_code
    from locap.trainer.distributed import processes
    from locap.trainer.experiment import evaluate

    with processes(cfg, device_of(cfg)) as world:
        return exit_code(evaluate(cfg, world, predictions=arguments.predictions))


def run_combine(arguments: argparse.Namespace) -> None:
    """Merge X-Decoder's weights and GRiT's captioner."""
    path = combine_files(arguments.xdecoder, arguments.grit, arguments.output)
    sys.stderr.write(f"written: {path}\n")


def run_quickstart(arguments: argparse.Namespace) -> int:
    """Train, evaluate and caption on the embedded data set."""
    from locap.trainer.quickstart import quickstart

    shipped = Path(__file__).resolve().parent / "configs" / "quickstart.yaml"
    arguments.conf_files = arguments.conf_files or [str(shipped)]
    arguments.overrides = ["SAVE_DIR", arguments.output, *arguments.overrides]
    return quickstart(read_config(arguments), Path(arguments.output))


if __name__ == "__main__":
    sys.exit(main())
