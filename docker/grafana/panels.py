"""What each dashboard shows: its panels and their queries. `write_dashboards.py` makes them JSON.

A query must show something whenever work is done, before the first error too: counters begin at 0,
and what divides is kept from being 0. Quantiles of nothing are NaN; `>= 0` leaves those out.
"""

from __future__ import annotations

from dataclasses import dataclass, field

DRAWING = 'route=~"/v1/generate|/v1/images/.+"'
RATE = "[$__rate_interval]"


@dataclass(frozen=True)
class Panel:
    """One picture of a dashboard.

    Attributes:
        queries: legend -> expression; `{{label}}` in a legend is that label's value.
        unit: as Grafana calls it.
        is_number: one figure instead of lines.
        needs_gpu: has values only where a GPU, or its exporter, tells them.
    """

    title: str
    queries: dict[str, str]
    unit: str = "short"
    text: str = ""
    is_number: bool = False
    needs_gpu: bool = False


@dataclass(frozen=True)
class Dashboard:
    """A page of panels; `uid` is its file's name and its address."""

    uid: str
    title: str
    panels: list[Panel] = field(default_factory=list)


def quantile(q: float, metric: str, by: str = "", where: str = "") -> str:
    """The q-quantile of a histogram, by a label where one is named."""
    labels = f"{by}, le" if by else "le"
    selector = f"onestep_{metric}_bucket{'{' + where + '}' if where else ''}"
    return f"histogram_quantile({q}, sum by ({labels}) (rate({selector}{RATE}))) >= 0"


def rate(metric: str, by: str = "", where: str = "") -> str:
    """How much a counter grows in a second."""
    grouping = f" by ({by})" if by else ""
    return f"sum{grouping} (rate(onestep_{metric}{'{' + where + '}' if where else ''}{RATE}))"


def most(expression: str) -> str:
    """The largest of many series, most of which are 0 on a good day."""
    return f"topk(8, {expression})"


def share(part: str, whole: str) -> str:
    """A ratio that is 0 where there is nothing."""
    return f"{part} / clamp_min({whole}, 1e-9)"


def _quantiles(metric: str, where: str = "") -> dict[str, str]:
    return {f"p{q}": quantile(q / 100, metric, where=where) for q in (50, 95, 99)}


def _where_time_goes(q: int) -> Panel:
    return Panel(
        f"Where the time goes, p{q}",
        {
            "queue": quantile(q / 100, "queue_wait_seconds"),
            "{{stage}}": quantile(q / 100, "stage_duration_seconds", by="stage"),
        },
        "s",
        "Stages are timed per batch, encode per picture. encode_input is the picture to start "
        "from; draw is denoise and decode where a backend runs both as one.",
    )


LATENCY = Dashboard(
    "onestep-latency",
    "Latency",
    [
        Panel("End to end", _quantiles("request_duration_seconds", DRAWING), "s"),
        Panel(
            "To the first picture",
            _quantiles("time_to_first_image_seconds"),
            "s",
            "Of requests that were drawn; refusals do not make it look quick.",
        ),
        *(_where_time_goes(q) for q in (50, 95, 99)),
        Panel(
            "Wait in the queue by priority, p95",
            {"{{priority}}": quantile(0.95, "queue_wait_seconds", by="priority")},
            "s",
        ),
    ],
)

THROUGHPUT = Dashboard(
    "onestep-throughput",
    "Throughput and batching",
    [
        Panel("Pictures", {"pictures": rate("images_total")}, "reqps"),
        Panel(
            "Requests by status",
            {"{{code}}": most(rate("requests_total", "code", DRAWING))},
            "reqps",
        ),
        Panel(
            "Pictures per batch",
            {
                "mean": share(rate("batch_size_sum"), rate("batch_size_count")),
                "p95": quantile(0.95, "batch_size"),
            },
        ),
        Panel(
            "Padding in batches",
            {
                "padding": share(
                    rate("batch_rows_total", where='kind="padding"'), rate("batch_rows_total")
                )
            },
            "percentunit",
            "Rows that were drawn for nobody, because an engine is compiled for a few sizes only. "
            "0 where any size runs.",
        ),
        Panel(
            "Why batches took no more",
            {"{{reason}}": rate("batch_close_total", "reason")},
            "ops",
        ),
        Panel(
            "Engine busy",
            {"{{instance}}": rate("engine_busy_seconds_total", "instance")},
            "percentunit",
            "Near 100 % the engine is the limit; far below, with jobs waiting, something else is.",
        ),
        Panel("Batches split after an error", {"splits": rate("batch_retry_total")}, "ops"),
        Panel(
            "Refusals by reason", {"{{reason}}": most(rate("rejected_total", "reason"))}, "reqps"
        ),
        Panel(
            "Prompts found in the cache",
            {
                "found": share(
                    rate("prompt_cache_total", where='result="hit"'), rate("prompt_cache_total")
                )
            },
            "percentunit",
        ),
        Panel(
            "Realtime messages",
            {
                "{{outcome}}": rate("realtime_messages_total", "outcome"),
                "connections": "sum(onestep_realtime_connections)",
            },
        ),
    ],
)

GPU = Dashboard(
    "onestep-gpu",
    "GPU and cost",
    [
        Panel(
            "Cost of 1000 pictures",
            {
                "cost": "1000 * sum(onestep_gpu_hourly_cost) / 3600 / "
                f"({rate('images_total')} > 0)",
            },
            "none",
            "All workers' ONESTEP_GPU_HOURLY_COST, in its currency, over the pictures delivered; "
            "the time that they stand idle is in it.",
        ),
        Panel(
            "Pictures per busy second",
            {
                "{{instance}}": share(
                    rate("images_total", "instance"), rate("engine_busy_seconds_total", "instance")
                )
            },
        ),
        Panel(
            "Engines",
            {"{{instance}} {{model}} {{backend}} {{precision}}": "onestep_engine_info"},
            text="What each worker draws with.",
        ),
        Panel(
            "Time in the present run",
            {"{{instance}}": "max by (instance) (onestep_engine_run_age_seconds)"},
            "s",
        ),
        Panel(
            "Batches that did not fit",
            {"{{model}}": rate("out_of_memory_total", "model")},
            "ops",
        ),
        Panel(
            "GPU memory, as workers see it",
            {"{{instance}} {{kind}}": "onestep_gpu_memory_bytes"},
            "bytes",
            needs_gpu=True,
        ),
        Panel(
            "GPU utilisation",
            {"{{gpu}}": "DCGM_FI_DEV_GPU_UTIL", "{{gpu}} SM": "100 * DCGM_FI_PROF_SM_ACTIVE"},
            "percent",
            needs_gpu=True,
        ),
        Panel("GPU power", {"{{gpu}}": "DCGM_FI_DEV_POWER_USAGE"}, "watt", needs_gpu=True),
        Panel(
            "GPU memory, as the driver sees it",
            {"{{gpu}}": "DCGM_FI_DEV_FB_USED"},
            "decmbytes",
            needs_gpu=True,
        ),
    ],
)

QUEUE = Dashboard(
    "onestep-queue",
    "Redis and jobs",
    [
        Panel("Open jobs", {"jobs": "max(onestep_queue_depth)"}),
        Panel("Age of the oldest job", {"age": "max(onestep_queue_oldest_age_seconds)"}, "s"),
        Panel("Workers", {"alive": "max(onestep_workers)"}),
        Panel(
            "Since the most silent worker's last sign of life",
            {"age": "max(onestep_worker_heartbeat_age_seconds)"},
            "s",
        ),
        Panel(
            "Deliveries that went wrong",
            {
                name: f"max(rate(onestep_{metric}_total{RATE}))"
                for name, metric in (
                    ("handed out again", "redelivered"),
                    ("given up", "dead_letter"),
                    ("too late", "late"),
                )
            },
            "ops",
            "Every process counts the same ones, so the largest count is shown.",
        ),
        Panel(
            "Jobs without a picture",
            {
                "{{reason}}": rate("failed_total", "reason"),
                "cancelled {{phase}}": rate("cancelled_total", "phase"),
            },
            "ops",
        ),
        Panel(
            "Memory of Redis",
            {"{{kind}}": "max by (kind) (onestep_redis_memory_bytes)"},
            "bytes",
            "max is 0 where Redis has no limit.",
        ),
        Panel(
            "Redis reached, and written to disk",
            {"reached": "min(onestep_queue_up)", "on disk": "min(onestep_redis_persists)"},
        ),
        Panel("Ready", {"{{instance}}": "max by (instance) (onestep_ready)"}),
        Panel("Webhooks open", {"webhooks": "sum(onestep_webhooks_open)"}),
    ],
)


def _budget_left(bad: str, whole: str, budget: float) -> str:
    # Below -100 % it no longer matters by how much it is overspent.
    return f"clamp_min(1 - ({bad}) / clamp_min({whole}, 1e-9) / {budget}, -1)"


_COUNTED = f'onestep_requests_total{{{DRAWING}, code!~"4..|0"}}[30d]'
_FAILED = f'onestep_requests_total{{{DRAWING}, code=~"5.."}}[30d]'
_PICTURES = "sum(increase(onestep_time_to_first_image_seconds_count[30d]))"
_QUICK = 'sum(increase(onestep_time_to_first_image_seconds_bucket{le="1.0"}[30d]))'

SLO = Dashboard(
    "onestep-slo",
    "SLO and error budget",
    [
        Panel(
            "Budget left of 30 days",
            {
                "availability 99.9 %": _budget_left(
                    f"sum(increase({_FAILED}))", f"sum(increase({_COUNTED}))", 0.001
                ),
                "latency 99 % in 1 s": _budget_left(f"{_PICTURES} - {_QUICK}", _PICTURES, 0.01),
            },
            "percentunit",
            is_number=True,
        ),
        Panel(
            "Alerts",
            {"firing": 'sum(ALERTS{alertstate="firing"}) or vector(0)'},
            is_number=True,
        ),
        *(
            Panel(
                f"Burn of the {slo} budget",
                {
                    window: f'onestep:error_budget_burn:rate{window}{{slo="{slo}"}}'
                    for window in ("5m", "30m", "1h", "6h", "3d")
                },
                text="1 spends the budget exactly in 30 days; 14.4 in two days.",
            )
            for slo in ("availability", "latency")
        ),
        Panel(
            "Errors by reason",
            {"{{reason}}": rate("requests_total", "reason", f'{DRAWING}, code=~"5.."')},
            "reqps",
        ),
        Panel(
            "Drawn within a second",
            {
                "share": rate("time_to_first_image_seconds_bucket", where='le="1.0"')
                + f" / ({rate('time_to_first_image_seconds_count')} > 0)",
            },
            "percentunit",
        ),
        Panel(
            "Refused for want of room",
            {
                "share": share(
                    rate(
                        "rejected_total", where='reason=~"queue_full|queue_unavailable|not_ready"'
                    ),
                    rate("requests_total", where=DRAWING),
                )
            },
            "percentunit",
        ),
        Panel(
            "Requests that count",
            {"{{slo}}, in an hour": "onestep:slo_volume:increase1h"},
        ),
    ],
)

DASHBOARDS = (LATENCY, THROUGHPUT, GPU, QUEUE, SLO)
