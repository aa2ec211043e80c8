"""The runner: ``python -m benchmarks [family …]``, and ``python -m benchmarks report``."""

from __future__ import annotations

import argparse
import importlib
import json
import sys
import warnings

from benchmarks import harness

FAMILIES = {
    "kalman": "linear Gaussian, one series: likelihood, filter, smoother, gradient",
    "batch": "1,000 short series, shared or own parameters, complete or with missing values",
    "hmm": "hidden Markov models, one recording: likelihood, smoother, Viterbi, gradient, E-step, 20 starts",
    "em": "EM: time of an iteration, time of a whole second fit",
    "glm_hmm": "EM of a GLM-HMM: time of an iteration, time of a whole second fit",
    "one_hot": "switching connectivity: what each prior of the couplings recovers, over 5 seeds",
    "soft_labels": "labels of the states: held-out accuracy of an autoregressive HMM, over 10 seeds",
    "jump": "rates of a jump process: error and seconds of EM and of Gibbs sampling, over 5 to 20 seeds",
    "particles": "bootstrap particle filters: log likelihood of 1,000 moments, 1,000 filters at once",
    "paris": "particle smoothing: bias and error of PaRIS and PPG; seconds of the smoothers",
    "nonlinear": "extended and unscented filters, smoothers and gradients; the iterated smoother",
    "decoding": "discriminative filters: errors of their rules, reaching; latency of online decoders",
    "assimilation": "ensembles on Lorenz-96: error of the analysis and of the smoothed states over seeds",
    "stability": "smoothers of 100 runs of bearings in float32: how many fail, in each form",
    "newton": "nonlinear recurrences by parallel Newton: iterations by gain, time against the scan",
    "start": "import, first result in a cold process, compile time of an associative filter",
    "scaling": "associative against sequential scans over the length of the series",
    "accuracy": "errors on ill-conditioned models in float32 and float64",
}


def main(arguments: list[str]) -> None:
    if arguments[:1] == ["--options"]:  # how the runner calls itself
        options = harness.Options(**_tuples(json.loads(arguments[1])))
        harness.prepare(options)
        _run(options)
        return
    if arguments[:1] == ["report"]:
        from benchmarks import report

        report.main(arguments[1:])
        return
    options = parse(arguments)
    harness.prepare(options)
    _run(options)


def parse(arguments: list[str]) -> harness.Options:
    families = "\n".join(f"  {name:10s}{what}" for name, what in FAMILIES.items())
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=__doc__,
        epilog=f"families (default: all):\n{families}\n\n"
        "`report [family …]` prints Markdown tables of what was measured; `report --write` puts them "
        "into benchmarks/README.md.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("families", nargs="*", metavar="family")
    add("--only", nargs="+", default=[], help="columns whose name contains one of these")
    add("--ops", nargs="+", default=[], help="operations, such as loglik grad")
    add("--dims", default="", help="states x channels, such as 2x1,4x4")
    add("--T", default="", dest="lengths", help="lengths, such as 1000,10000")
    add("--quick", action="store_true", help="a few sizes only")
    add(
        "--extra",
        action="store_true",
        help="also square roots and associative scans (slow to compile)",
    )
    add("--no-fused", action="store_false", dest="fused", help="leave out the fused-loops rows")
    add("--no-save", action="store_false", dest="save", help="do not write to benchmarks/results/")
    add("--core", default="1", help="core to pin the process to; `all` for no pinning (default 1)")
    add("--platform", default="cpu", choices=["cpu", "gpu"])
    add("--budget", type=float, default=0.3, help="seconds of repeats for each row (default 0.3)")
    add("--seeds", type=int, default=5, help="recordings of assimilation and decoding (default 5)")
    args = vars(parser.parse_args(arguments))
    unknown = set(args["families"]) - set(FAMILIES)
    if unknown:
        parser.error(
            f"no family called {', '.join(sorted(unknown))}; there are {', '.join(FAMILIES)}"
        )
    args["families"] = args["families"] or list(FAMILIES)
    args["dims"] = [tuple(map(int, d.split("x"))) for d in args["dims"].split(",") if d]
    args["lengths"] = [int(float(t)) for t in args["lengths"].split(",") if t]
    return harness.Options(**_tuples(args))


def _tuples(values: dict) -> dict:
    """Lists as tuples, also inside lists."""

    def frozen(value):
        return tuple(map(frozen, value)) if isinstance(value, list) else value

    return {name: frozen(value) for name, value in values.items()}


def _run(options: harness.Options) -> None:
    warnings.filterwarnings("ignore")
    for family in options.families:
        importlib.import_module(f"benchmarks.{family}").run(options)


if __name__ == "__main__":
    main(sys.argv[1:])
