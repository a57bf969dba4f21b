"""Does a guard keep the architecture from collapsing to pooling? Op histograms of the prior with and without guards.

Every variant is the demo's study, trained through Ray; what differs is the guard alone.
"""

import tempfile
from pathlib import Path

from reporting import arguments, console, finish
from rich.table import Table

from common.artifacts import PriorStore
from common.loading import load
from coordinator import study
from coordinator.driver import open_session
from coordinator.sinks import read_lines

VARIANTS = {
    "unguarded": (),
    "penalty on pooling and skip": ("inner.op_penalty={max_pool_3x3 = 1.0, avg_pool_3x3 = 1.0, skip_connect = 1.0}",),
    "warm-up of 20 rounds": ("outer.alpha_warmup_rounds=20",),
    "stop at 4 parameter-free edges": ("outer.max_parameter_free_edges=4",),
}


def main() -> None:
    parser = arguments(__doc__ or "")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1])
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--guards", nargs="+", choices=list(VARIANTS), default=list(VARIANTS))
    options = parser.parse_args()
    table = Table(title="Reduction cell: edges where max pool is strongest; pools and skips kept", show_edge=False)
    for column in ("guard", "seed", "max pool", "kept", "entropy", "loss"):
        table.add_column(column, no_wrap=True)
    result: dict[str, list[dict[str, float]]] = {}
    config = load("demo", environment={})
    num_edges = config.space.topology.num_edges
    study.load_catalogs(config)
    with tempfile.TemporaryDirectory() as folder:
        for name in options.guards:
            for seed in options.seeds:
                config = load("demo", [f"seed={seed}", f"rounds={options.rounds}", *VARIANTS[name]], environment={})
                run = Path(folder) / f"{len(result)}-{seed}"
                with open_session("bench-guards", config.cluster, None, console) as session:
                    session.train(run, config, study.begin(PriorStore(run), config))
                last = read_lines(run / "rounds.jsonl")[-1]
                result.setdefault(name, []).append(last)
                table.add_row(
                    name,
                    str(seed),
                    f"{last['strongest_op_edges/reduction/max_pool_3x3']:.0f} of {num_edges}",
                    f"{last['parameter_free_ops/reduction']:.0f} of 8",
                    f"{last['alpha_entropy/reduction']:.2f}",
                    f"{last['train_loss_last']:.2f}",
                )
    console.print(table)
    finish({"variants": result}, {"meta_seeds": options.seeds}, options.json)


if __name__ == "__main__":
    main()
