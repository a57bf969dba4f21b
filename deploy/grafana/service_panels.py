"""What the dashboard shows of jobs, workers, gateways, the job store and the cluster."""

from panels import BLUE, ORANGE, RAY, VERMILION, Panel, Query, Row, quantiles, ray

NODES_PANEL, UTILISATION_PANEL = 24, 41
"""The overview page of the Ray dashboard embeds these two of the dashboard that its Metrics view shows."""
_RUNNING_OR_LENT = 'state=~"running|lent"'
_RUNNING = 'state="running"'
_AT_WORK = f"sum(rate({ray('worker_busy_seconds_total')}[2m])) / sum({ray('workers', _RUNNING)})"

GLANCE = Row(
    "At a glance",
    [
        Panel(
            "Coordinator",
            "Signs of life per second in the job store. 0: no coordinator is alive, jobs wait.",
            "cps",
            [Query("max(rate(metasearch_coordinator_beats_total[1m]))", "beats")],
            3,
            "stat",
            steps=[(VERMILION, 0), (BLUE, 0.1)],
        ),
        Panel(
            "Job store",
            "Whether the job store answers all gateways.",
            "bool_yes_no",
            [Query("min(metasearch_store_up)", "answers")],
            3,
            "stat",
            steps=[(VERMILION, 0), (BLUE, 1)],
        ),
        Panel(
            "Gateways",
            "Gateways that tell their metrics.",
            "none",
            [Query("count(metasearch_store_up) or vector(0)", "gateways")],
            3,
            "stat",
            steps=[(VERMILION, 0), (BLUE, 1)],
        ),
        Panel(
            "Workers",
            "Worker actors that run; those lent to sweeps included.",
            "none",
            [Query(f"sum({ray('workers', _RUNNING_OR_LENT)})", "workers")],
            3,
            "stat",
            steps=[(VERMILION, 0), (BLUE, 1)],
        ),
        Panel(
            "Waiting",
            "Jobs in the queue.",
            "none",
            [Query("sum(max by (kind) (metasearch_queue_depth))", "jobs")],
            3,
            "stat",
        ),
        Panel(
            "Oldest waiting",
            "Since the submission of the oldest job in the queue. More than an hour is an alert.",
            "s",
            [Query("max(metasearch_queue_age_seconds)", "age")],
            3,
            "stat",
            steps=[(BLUE, 0), (ORANGE, 600), (VERMILION, 3600)],
        ),
        Panel(
            "Running",
            "Jobs that run, in whoever's hands.",
            "none",
            [Query('max(metasearch_jobs{state="running"})', "jobs")],
            3,
            "stat",
        ),
        Panel(
            "Workers at work",
            "Share of the workers' time that they are at work, over two minutes.",
            "percentunit",
            [
                Query(
                    _AT_WORK,
                    "busy",
                )
            ],
            3,
            "stat",
        ),
    ],
    4,
)
JOBS = Row(
    "Jobs and queue",
    [
        Panel(
            "Queue",
            "Jobs in the queue by kind, as the gateways see it in the job store: also while no coordinator is alive.",
            "none",
            [Query("max by (kind) (metasearch_queue_depth)", "{{kind}}")],
            stacked=True,
        ),
        Panel(
            "Oldest job in the queue",
            "Seconds since its submission, by kind. It rises where jobs wait for a GPU that is not there, for a "
            "quota, or for earlier jobs of their study.",
            "s",
            [Query("max by (kind) (metasearch_queue_age_seconds)", "{{kind}}")],
            steps=[("transparent", 0), (VERMILION, 3600)],
        ),
        Panel(
            "Jobs by state",
            "Jobs that have not ended.",
            "none",
            [Query("max by (state) (metasearch_jobs)", "{{state}}")],
            stacked=True,
        ),
        Panel(
            "Jobs ended",
            "Per minute, by how; counted in the job store, so no restart loses any.",
            "none",
            [Query("60 * max by (state) (rate(metasearch_jobs_finished_total[5m]))", "{{state}}")],
        ),
        Panel(
            "Failures",
            "Jobs that failed within 15 minutes, by reason. INVALID_INPUT and NOT_FOUND are users' mistakes.",
            "none",
            [Query(f"sum by (reason) (increase({ray('jobs_failed_total')}[15m]))", "{{reason}}")],
        ),
        Panel(
            "Submission to success",
            "Of jobs that succeeded within 15 minutes, by kind: median and 95th percentile.",
            "s",
            quantiles(ray("job_seconds_bucket"), "kind", "15m"),
        ),
    ],
)
WORK = Row(
    "Coordinator and workers",
    [
        Panel(
            "Coordinators",
            "The epoch counts coordinators that took charge; each step up is a new one.",
            "none",
            [Query("max(metasearch_coordinator_epoch)", "epoch")],
        ),
        Panel(
            "Workers by state",
            "Starting ones that stay so find no room on the cluster.",
            "none",
            [Query(f"max by (state) ({ray('workers')})", "{{state}}")],
        ),
        Panel(
            "Share of time at work",
            "Of all running workers. Low with a full queue: the coordinator, the store or the network holds them up.",
            "percentunit",
            [
                Query(
                    _AT_WORK,
                    "at work",
                )
            ],
            maximum=1.0,
        ),
        Panel(
            "Seconds of a call",
            "What workers take for what they are asked for: one task, several, an adapt or few-shot job, a part of "
            "training a full network.",
            "s",
            quantiles(ray("adapt_seconds_bucket"), "call", "15m"),
        ),
        Panel(
            "Steps",
            "Steps of training per second, all workers. None while jobs run: look at the workers' logs.",
            "cps",
            [Query(f"sum(rate({ray('worker_steps_total')}[2m]))", "steps")],
        ),
        Panel(
            "Attempts at jobs",
            "Started per minute, by kind.",
            "none",
            [Query(f"60 * sum by (kind) (rate({ray('jobs_started_total')}[5m]))", "{{kind}}")],
        ),
        Panel(
            "Runs again",
            "Jobs that went back to the queue and tasks that ran again within 15 minutes, by cause.",
            "none",
            [Query(f"sum by (cause) (increase({ray('retries_total')}[15m]))", "{{cause}}")],
        ),
        Panel(
            "Workers replaced",
            "Within 15 minutes: they died (memory, a lost node) or hung.",
            "none",
            [Query(f"sum(increase({ray('workers_replaced_total')}[15m]))", "replaced")],
        ),
        Panel(
            "Draining",
            "Processes that hand their work over and take no more.",
            "none",
            [Query("sum(metasearch_draining)", "gateways"), Query(f"sum({ray('draining')})", "coordinators")],
        ),
    ],
)
GATEWAY = Row(
    "Gateway",
    [
        Panel(
            "Calls by method",
            "Calls that ended, per second.",
            "reqps",
            [Query("sum by (method) (rate(metasearch_rpcs_total[2m]))", "{{method}}")],
        ),
        Panel(
            "Calls by status",
            "INTERNAL, UNKNOWN, UNAVAILABLE and DATA_LOSS are the service's fault; a watch that its client leaves is "
            "CANCELLED.",
            "reqps",
            [Query("sum by (code) (rate(metasearch_rpcs_total[2m]))", "{{code}}")],
        ),
        Panel(
            "Latency",
            "Of unary calls, all methods. More than a second at the 95th percentile is an alert.",
            "s",
            quantiles("metasearch_rpc_seconds_bucket", "", shares=(0.5, 0.95, 0.99)),
            steps=[("transparent", 0), (VERMILION, 1)],
        ),
        Panel(
            "Latency by method",
            "The 95th percentile of each unary one.",
            "s",
            quantiles("metasearch_rpc_seconds_bucket", "method", shares=(0.95,)),
        ),
        Panel(
            "Open streams",
            "Streaming calls under way; those of WatchJob are the open watches.",
            "none",
            [Query("sum by (method) (metasearch_open_streams)", "{{method}}")],
        ),
        Panel(
            "Uploads",
            "Bytes of data sets received per second.",
            "Bps",
            [Query("sum(rate(metasearch_upload_bytes_total[2m]))", "received")],
        ),
        Panel(
            "Memory of gateways",
            "Resident memory of each process.",
            "bytes",
            [
                Query(
                    "process_resident_memory_bytes * on (instance) group by (instance) (metasearch_store_up)",
                    "{{instance}}",
                )
            ],
        ),
        Panel(
            "Processor time of gateways",
            "In cores, of each process.",
            "none",
            [
                Query(
                    "rate(process_cpu_seconds_total[2m]) * on (instance) group by (instance) (metasearch_store_up)",
                    "{{instance}}",
                )
            ],
        ),
    ],
)
STORE = Row(
    "Job store",
    [
        Panel(
            "Latency for gateways",
            "95th percentile, by call; a commit waits for the disk.",
            "s",
            quantiles("metasearch_store_seconds_bucket", "call", shares=(0.95,)),
            steps=[("transparent", 0), (VERMILION, 0.5)],
        ),
        Panel(
            "Latency for the coordinator",
            "95th percentile, by call.",
            "s",
            quantiles(ray("store_seconds_bucket"), "call", shares=(0.95,)),
            steps=[("transparent", 0), (VERMILION, 0.5)],
        ),
        Panel(
            "Calls without an answer",
            "Within five minutes, of gateways and of the coordinator.",
            "none",
            [
                Query("sum(increase(metasearch_store_errors_total[5m]))", "gateways"),
                Query(f"sum(increase({ray('store_errors_total')}[5m]))", "coordinator"),
            ],
        ),
        Panel(
            "Calls",
            "Calls to the job store per second.",
            "ops",
            [
                Query("sum(rate(metasearch_store_seconds_count[2m]))", "gateways"),
                Query(f"sum(rate({ray('store_seconds_count')}[2m]))", "coordinator"),
            ],
        ),
    ],
)
NODES = Row(
    "Ray cluster",
    [
        Panel(
            "Nodes",
            "Nodes that tell their metrics.",
            "none",
            [Query(f"count(ray_node_cpu_count{{{RAY}}})", "nodes")],
            panel_id=NODES_PANEL,
        ),
        Panel(
            "Utilisation",
            "Of all nodes together. Lines of GPUs are there where there are any.",
            "percent",
            [
                Query(f"avg(ray_node_cpu_utilization{{{RAY}}})", "CPU"),
                Query(f"100 * sum(ray_node_mem_used_host{{{RAY}}}) / sum(ray_node_mem_total_host{{{RAY}}})", "memory"),
                Query(f"avg(ray_node_gpus_utilization{{{RAY}}})", "GPU"),
                Query(
                    f"100 * sum(ray_node_gram_used{{{RAY}}}) / "
                    f"(sum(ray_node_gram_used{{{RAY}}}) + sum(ray_node_gram_available{{{RAY}}}))",
                    "GPU memory",
                ),
                Query(
                    f"100 * sum(ray_object_store_used_memory{{{RAY}}}) / "
                    f"(sum(ray_object_store_used_memory{{{RAY}}}) + sum(ray_object_store_available_memory{{{RAY}}}))",
                    "object store",
                ),
            ],
            maximum=100.0,
            panel_id=UTILISATION_PANEL,
        ),
        Panel(
            "Actors",
            "Coordinator and workers, by class and Ray's state of them.",
            "none",
            [Query(f"sum by (Name, State) (ray_actors{{{RAY}}}) > 0", "{{Name}} {{State}}")],
        ),
    ],
)
