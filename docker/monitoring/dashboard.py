"""The Grafana dashboard as code: `python docker/monitoring/dashboard.py` writes dashboard.json beside it.

PANELS is the whole of it: rows, panels and their queries in PromQL. Grafana reads the JSON; tests read the table.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from grafana_foundation_sdk.builders import dashboard, prometheus, timeseries
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.dashboard import DataSourceRef, VariableHide

TARGET = Path(__file__).with_name("dashboard.json")
SOURCE = DataSourceRef(type_val="prometheus", uid="${source}")
HEIGHT, WIDTH = 8, 8  # three panels beside each other
WINDOW = "$__rate_interval"


@dataclass(frozen=True)
class Panel:
    """queries: legend -> PromQL. unit: as Grafana names them."""

    title: str
    text: str
    unit: str
    queries: dict[str, str]


def rate(name: str, *, by: str = "") -> str:
    return f"sum{f' by ({by})' if by else ''} (rate(grpo_server_{name}[{WINDOW}]))"


def quantile(q: float, name: str) -> str:
    return f"histogram_quantile({q}, sum by (le) (rate(grpo_server_{name}_bucket[{WINDOW}])))"


def quantiles(name: str) -> dict[str, str]:
    return {f"p{q * 100:.0f}": quantile(q, name) for q in (0.5, 0.9, 0.99)}


PANELS: dict[str, list[Panel]] = {
    "What clients see": [
        Panel("Answers", "A second, by status.", "reqps", {"{{status}}": rate("requests_total", by="status")}),
        Panel("Time of a request", "From first byte in to last byte out.", "s", quantiles("request_seconds")),
        Panel(
            "Refusals",
            "A second, by the code of the error.",
            "reqps",
            {"{{reason}}": rate("refusals_total", by="reason")},
        ),
    ],
    "Work": [
        Panel(
            "Tokens",
            "A second: log-probs that came out, tokens that went through the model.",
            "short",
            {"scored": rate("scored_tokens_total"), "computed": rate("computed_tokens_total")},
        ),
        Panel(
            "Batch fill",
            "Mean size of a batch over the most that one holds: low with a full queue means requests that do not fit together.",
            "percentunit",
            {
                "fill": f"{rate('batch_tokens_sum')} / {rate('batch_tokens_count')} / avg(grpo_server_max_batch_tokens)",
            },
        ),
        Panel("Time of a batch", "In the engine.", "s", quantiles("compute_seconds")),
        Panel(
            "Arithmetic",
            "Operations of the model, a second.",
            "flops",
            {"{{instance}}": f"rate(grpo_server_model_flops_total[{WINDOW}])"},
        ),
        Panel(
            "MFU",
            "Arithmetic over the most that the devices do, while they compute and of all time; none for an unknown card.",
            "percentunit",
            {
                "computing, {{instance}}": f"rate(grpo_server_model_flops_total[{WINDOW}]) / "
                f"rate(grpo_server_compute_seconds_sum[{WINDOW}]) / grpo_server_peak_flops",
                "of all time, {{instance}}": f"rate(grpo_server_model_flops_total[{WINDOW}]) / grpo_server_peak_flops",
            },
        ),
    ],
    "Queue": [
        Panel(
            "Queue fill",
            "Tokens accepted and not yet computed, over the most that may be.",
            "percentunit",
            {"{{instance}}": "grpo_server_queue_tokens / grpo_server_max_queue_tokens"},
        ),
        Panel("Wait", "From acceptance to the first batch.", "s", quantiles("queue_seconds")),
        Panel(
            "Requests under way",
            "Accepted and not yet answered.",
            "short",
            {"{{instance}}": "grpo_server_queue_requests"},
        ),
    ],
    "Memory": [
        Panel(
            "Memory held",
            "By requests and answers, by bodies, and by the cache of results.",
            "bytes",
            {
                "requests": "sum(grpo_server_queue_bytes)",
                "bodies": "sum(grpo_server_body_bytes)",
                "cache": "sum(grpo_server_cache_bytes)",
            },
        ),
        Panel("Process", "Resident memory.", "bytes", {"{{instance}}": "process_resident_memory_bytes"}),
        Panel(
            "Cache hits",
            "Share of completions that were known.",
            "percentunit",
            {
                "hits": f"{rate('cache_hits_total')} / "
                f"clamp_min({rate('cache_hits_total')} + {rate('cache_misses_total')}, 1e-9)"
            },
        ),
    ],
    "Who, and which reference": [
        Panel("Tokens by key", "A second, of named keys.", "short", {"{{key}}": rate("key_tokens_total", by="key")}),
        Panel(
            "Tokens in the queue by key", "Now.", "short", {"{{key}}": "sum by (key) (grpo_server_key_queue_tokens)"}
        ),
        Panel(
            "Version of the reference",
            "One line each replica: they part while a swap is under way.",
            "short",
            {"{{instance}}": "grpo_server_reference_version"},
        ),
    ],
    "Swaps, and the way of computing": [
        Panel(
            "Swaps and mixes",
            "An hour, by how they ended.",
            "short",
            {"{{kind}}: {{result}}": f"3600 * {rate('swaps_total', by='kind, result')}"},
        ),
        Panel("Time of a swap", "From being asked for to its end.", "s", quantiles("swap_seconds")),
        Panel(
            "References in memory",
            "2 while one serves what it accepted before a swap.",
            "short",
            {"{{instance}}": "grpo_server_engines", "under way at {{instance}}": "grpo_server_swap_in_progress"},
        ),
        Panel(
            "Modes and paths",
            "Replicas, by mode and by the way in which sequences share their prompts.",
            "short",
            {"{{mode}}, {{tier}}": "count by (mode, tier) (grpo_server_reference_info)"},
        ),
    ],
    "Health": [
        Panel("Ready", "1 where a request would be taken.", "short", {"{{instance}}": "grpo_server_ready"}),
        Panel("Batches halved", "A second, because memory ran out.", "short", {"halved": rate("oom_splits_total")}),
        Panel(
            "Keys file",
            "1 while it is broken and the keys read before stand.",
            "short",
            {"broken": "grpo_server_keys_file_broken"},
        ),
    ],
}


def built() -> str:
    """The JSON that Grafana reads."""
    board = (
        dashboard.Dashboard("grpo-refserver")
        .uid("grpo-refserver")
        .tags(["grpo-refserver"])
        .refresh("10s")
        .time("now-1h", "now")
        .readonly()
        .with_variable(
            dashboard.DatasourceVariable("source").label("Prometheus").type("prometheus").hide(VariableHide.DONT_HIDE)
        )
    )
    for row, panels in PANELS.items():
        board = board.with_row(dashboard.Row(row))
        for panel in panels:
            board = board.with_panel(_panel(panel))
    return JSONEncoder(sort_keys=True, indent=2).encode(board.build()) + "\n"


def _panel(panel: Panel) -> timeseries.Panel:
    made = timeseries.Panel().title(panel.title).description(panel.text).unit(panel.unit).min(0)
    made = made.datasource(SOURCE).height(HEIGHT).span(WIDTH).fill_opacity(8)
    for i, (legend, expression) in enumerate(panel.queries.items()):
        query = prometheus.Dataquery().expr(expression).legend_format(legend).ref_id(chr(ord("A") + i)).range()
        made = made.with_target(query)
    return made


if __name__ == "__main__":
    TARGET.write_text(built(), encoding="utf-8")
