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
    "stop at 4 parameter-free ops": ("outer.max_parameter_free_edges=4",),
}


def main() -> None:
    parser = arguments(__doc__ or "")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1])
    parser.add_argument("--rounds", type=int, default=50)
    options = parser.parse_args()
    table = Table("guard", "seed", "max pool, reduction", "parameter-free, normal", "reduction", "entropy", "loss")
    result: dict[str, list[dict[str, float]]] = {}
    config = load("demo", environment={})
    num_edges = config.space.topology.num_edges
    study.load_catalogs(config)
    with tempfile.TemporaryDirectory() as folder:
        for name, overrides in VARIANTS.items():
            for seed in options.seeds:
                config = load("demo", [f"seed={seed}", f"rounds={options.rounds}", *overrides], environment={})
                run = Path(folder) / f"{len(result)}-{seed}"
                with open_session("bench-guards", config.cluster, None, console) as session:
                    session.train(str(run), config, study.begin(PriorStore(run), config))
                last = read_lines(run / "rounds.jsonl")[-1]
                result.setdefault(name, []).append(last)
                table.add_row(
                    name,
                    str(seed),
                    f"{last['strongest_op_edges/reduction/max_pool_3x3']:.0f} of {num_edges} edges",
                    f"{last['parameter_free_ops/normal']:.0f} of 8",
                    f"{last['parameter_free_ops/reduction']:.0f} of 8",
                    f"{last['alpha_entropy/normal']:.2f}, {last['alpha_entropy/reduction']:.2f}",
                    f"{last['train_loss_last']:.2f}",
                )
    console.print(table)
    finish({"variants": result}, {"meta_seeds": options.seeds}, options.json)


if __name__ == "__main__":
    main()
