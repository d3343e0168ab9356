"""``evaluate --predictions FILE --protocol ID --ground-truth FILE``: no model, no configuration."""

from __future__ import annotations

import sys
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path

from ..utils.errors import UsageError, nearest
from ..utils.files import write_json
from . import EVALUATORS
from .comparison import compare_figures, differing_facts, load_results, print_comparison, require_comparable
from .formats import PREDICTIONS, TRUTHS, load_ground_truth, load_predictions_and_meta
from .report import EvaluationReport, describe_source, exit_code, print_results, write_regions_csv, write_report
from .results import ProtocolResult
from .runner import evaluate_stored, evaluator_class, make_evaluators


def add_arguments(parser: ArgumentParser) -> None:
    """Add the arguments of scoring files."""
    parser.add_argument("--predictions", metavar="FILE", help="score this result file; no model is built")
    parser.add_argument("--protocol", nargs="+", default=[], metavar="ID", help=", ".join(EVALUATORS))
    parser.add_argument("--ground-truth", metavar="FILE", help="score against this file; needs no configuration")
    parser.add_argument("--variant", metavar="NAME", help="of the protocols that have several; default: standard")
    parser.add_argument(
        "--option", nargs="+", default=[], metavar="NAME=VALUE", help="what else a protocol can be told"
    )
    for what, forms in (("predictions", PREDICTIONS), ("ground-truth", TRUTHS)):
        parser.add_argument(f"--{what}-folder", metavar="FOLDER", help=f"of the files named in the {what} file")
        parser.add_argument(f"--{what}-form", metavar="FORM", help=f"{', '.join(forms)}; default: found out")
    parser.add_argument("--output", metavar="FILE", help="result JSON; default: beside the predictions")
    parser.add_argument("--csv", action="store_true", help="also write a row per region, beside the result JSON")
    parser.add_argument("--tables", action="store_true", help="also print the breakdowns")
    parser.add_argument("--compare", nargs="+", metavar="FILE", help="show result JSONs side by side, score nothing")
    parser.add_argument("--force", action="store_true", help="compare what rests on other data or another protocol")


def score_files(arguments: Namespace) -> int:
    """Score, print and write; returns the exit code.

    Raises:
        UsageError: an argument is missing, or a protocol, variant, option or form is unknown.
        DataError: a file is malformed, or the files do not fit together.
    """
    for name in ("predictions", "protocol", "ground_truth"):
        if not getattr(arguments, name):
            raise UsageError(
                f"--{name.replace('_', '-')} is missing.",
                allowed="--predictions FILE --protocol ID --ground-truth FILE, or --conf_files YAML",
            )
    started = time.monotonic()
    options = {name: protocol_options(name, arguments.variant, arguments.option) for name in arguments.protocol}
    make_evaluators(arguments.protocol, (), options=options)  # a wrong variant is said before files are read
    truth, categories = load_ground_truth(
        arguments.ground_truth, arguments.ground_truth_folder, form=arguments.ground_truth_form
    )
    predictions, meta = load_predictions_and_meta(
        arguments.predictions, truth, arguments.predictions_folder, form=arguments.predictions_form
    )
    results = evaluate_stored(truth, predictions, arguments.protocol, categories, options=options)
    sources = [
        describe_source(file, records, file)
        for file, records in ((arguments.ground_truth, truth), (arguments.predictions, predictions))
    ]
    report = EvaluationReport(
        results,
        *sources,
        seconds=time.monotonic() - started,
        decoding=meta.get("decoding") or {},
        seed=meta.get("seed"),
        options={name: decisive_options(name, given) for name, given in options.items()},
    )
    _write(arguments, report, results)
    return exit_code(results)


def compare_files(arguments: Namespace) -> int:
    """Show result files side by side; returns the exit code.

    Raises:
        UsageError: fewer than two files.
        DataError: one is no result file, or their figures do not mean the same and --force is not given.
    """
    files = load_results(arguments.compare)
    if not arguments.force:
        require_comparable(files)
    print_comparison(files)
    if arguments.output:
        figures = [
            {"protocol": protocol, "variant": variant, "figures": values}
            for (protocol, variant), values in compare_figures(files).items()
        ]
        body = {"files": list(arguments.compare), "results": figures, "differs": differing_facts(files)}
        sys.stderr.write(f"written: {write_json(arguments.output, body, indent=1)}\n")
    return 0


def protocol_options(protocol: str, variant: str | None, pairs: Sequence[str]) -> dict[str, str]:
    """Return the keyword arguments of a protocol's evaluator.

    Raises:
        UsageError: there is no such protocol, an option is not NAME=VALUE, or the protocol has none of that name.
    """
    known = evaluator_class(protocol).options
    options = {} if variant is None else {"variant": variant}
    for pair in pairs:
        name, given, value = pair.partition("=")
        if not given or name not in known:
            close = nearest(name, known)
            raise UsageError(
                f"The protocol {protocol} has no such option.",
                value=name,  # what stands behind it may be a secret
                allowed="; ".join(f"{key}=VALUE, {text}" for key, text in known.items()) or "none",
                fix=f"use {close}=VALUE" if close else None,
            )
        options[name] = value
    return options


def decisive_options(protocol: str, options: Mapping[str, str]) -> dict[str, str]:
    """Return the options that change what the figures mean; the others may be secrets and stay out of result files."""
    return {name: options[name] for name in evaluator_class(protocol).decisive if name in options}


def _write(arguments: Namespace, report: EvaluationReport, results: Sequence[ProtocolResult]) -> None:
    stored = Path(arguments.predictions)
    path = Path(arguments.output) if arguments.output else stored.with_name(f"{stored.stem}_results.json")
    write_report(path, report)
    print_results(results, tables=arguments.tables)
    sys.stderr.write(f"written: {path}\n")
    for result in results if arguments.csv else ():
        if written := write_regions_csv(path.with_name(f"{path.stem}_{result.protocol}.csv"), result):
            sys.stderr.write(f"written: {written}\n")
