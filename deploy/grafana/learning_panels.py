"""What the dashboard shows of rounds and priors."""

from panels import BY_STUDY, Panel, Query, Row, of_study, quantiles, ray, strongest

LEARNING = Row(
    "Learning",
    [
        Panel(
            "Loss",
            "Objective in nats, mean over the tasks of a round: at their first step and at their last.",
            "none",
            [
                Query(of_study("train_loss_first"), "{{study}} first step"),
                Query(of_study("train_loss_last"), "{{study}} last step"),
            ],
        ),
        Panel(
            "Version of the prior",
            "Rises by one with each round and each contribution.",
            "none",
            [Query(of_study("prior_version"), "{{study}}")],
        ),
        Panel(
            "Length of the update",
            "How far a round moved all weights. A jump: look at the loss, and at rejected updates.",
            "none",
            [Query(of_study("update_norm"), "{{study}}")],
        ),
        Panel(
            "Entropy of the architecture",
            "Mean over edges, in nats, by kind of cell. It falls as the search decides; within a few rounds is too "
            "fast.",
            "none",
            [Query(of_study("alpha_entropy", f"{BY_STUDY}, cell"), "{{study}} {{cell}}")],
        ),
        Panel(
            "Strongest ops, normal cell",
            "On how many edges each op is the most probable one. A collapse shows here: skips and pools take over.",
            "none",
            [
                Query(
                    strongest("normal"),
                    "{{op}}",
                )
            ],
            stacked=True,
        ),
        Panel(
            "Strongest ops, reduction cell",
            "The same of the other kind of cell.",
            "none",
            [
                Query(
                    strongest("reduction"),
                    "{{op}}",
                )
            ],
            stacked=True,
        ),
        Panel(
            "Ops without parameters",
            "Pools and skips of the derived cell, by kind of cell.",
            "none",
            [Query(of_study("parameter_free_ops", f"{BY_STUDY}, cell"), "{{study}} {{cell}}")],
        ),
        Panel(
            "Seconds of a round",
            "From plan to new prior: median and 95th percentile of the last 15 minutes.",
            "s",
            quantiles(ray("round_seconds_bucket"), "", "15m"),
        ),
        Panel(
            "Images per second",
            "Training images per second of a worker, mean over the tasks of a round.",
            "none",
            [Query(of_study("images_per_second"), "{{study}}")],
        ),
        Panel(
            "Updates",
            "Updates of tasks within 15 minutes: accepted, and rejected by reason. Rejected ones leave no trace in the "
            "prior.",
            "none",
            [
                Query(f"sum(increase({ray('updates_accepted_total')}[15m]))", "accepted"),
                Query(f"sum by (reason) (increase({ray('updates_rejected_total')}[15m]))", "{{reason}}"),
            ],
        ),
        Panel(
            "Staleness",
            "Versions made since tasks began, of the updates that entered; 0 in synchronous rounds.",
            "none",
            [
                Query(of_study("staleness_mean"), "{{study}} mean"),
                Query(of_study("staleness_max"), "{{study}} stalest"),
            ],
        ),
        Panel(
            "Few-shot studies",
            "Accuracy on the query images of a round's tasks, 0 to 1.",
            "percentunit",
            [Query(of_study("query_accuracy"), "{{study}}")],
            maximum=1.0,
        ),
    ],
)
