"""The metrics of text-embeddings-inference, computed from offramp's own, in Prometheus' text format.

prometheus_client adds `_total` to the name of every counter, which theirs do not have; so these are written here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from prometheus_client.core import Metric

Samples = Mapping[str, Sequence[tuple[Mapping[str, str], float]]]
"""Labels and values by the samples' names."""


def tei_text(metrics: Iterable[Metric]) -> str:
    """Return the lines of their metrics."""
    samples: dict[str, list[tuple[Mapping[str, str], float]]] = {}
    for metric in metrics:
        for sample in metric.samples:
            samples.setdefault(sample.name, []).append((sample.labels, sample.value))
    lines = [line for name, read in _COUNTERS.items() for line in _counter(name, read(samples))]
    lines += [f"# TYPE te_queue_size gauge\nte_queue_size {_sum(samples, 'offramp_queue_rows'):g}"]
    for name, (own, labels) in _HISTOGRAMS.items():
        lines += _histogram(name, own, labels, samples)
    return "\n".join(lines) + "\n"


def _by_size(samples: Samples, outcomes: Sequence[str]) -> dict[tuple[str, str], float]:
    """Return how many requests had one row and how many several."""
    singles = sum(_sum(samples, "offramp_request_rows_bucket", outcome=name, le="1.0") for name in outcomes)
    total = sum(_sum(samples, "offramp_request_rows_count", outcome=name) for name in outcomes)
    return {("method", "single"): singles, ("method", "batch"): total - singles}


_ERRORS = {
    "empty": "validation",
    "malformed": "validation",
    "mistyped": "validation",
    "validation": "validation",
    "body_size": "validation",
    "unknown_model": "validation",
    "unauthorized": "validation",
    "not_applicable": "model_type",
    "batch_size": "batch_size",
    "overloaded": "overloaded",
    "unavailable": "inference",
    "timeout": "inference",
    "failed": "inference",
}
"""Their word for each kind of refusal."""


def _by_error(samples: Samples) -> dict[tuple[str, str], float]:
    counts: dict[tuple[str, str], float] = {}
    for labels, value in samples.get("offramp_request_failures_total", ()):
        key = ("err", _ERRORS[labels["kind"]])
        counts[key] = counts.get(key, 0) + value
    return counts


_COUNTERS: Mapping[str, Callable[[Samples], dict[tuple[str, str], float]]] = {
    "te_request_count": lambda samples: _by_size(samples, ("answered", "refused")),
    "te_request_success": lambda samples: _by_size(samples, ("answered",)),
    "te_request_failure": _by_error,
    "te_predict_count": lambda samples: {("", ""): sum(_rows(samples))},
    "te_predict_success": lambda samples: {("", ""): _rows(samples)[0]},
}
_HISTOGRAMS: Mapping[str, tuple[str, Mapping[str, str]]] = {
    "te_request_duration": ("offramp_request_seconds", {}),
    "te_request_tokenization_duration": ("offramp_request_phase_seconds", {"phase": "tokenization"}),
    "te_request_queue_duration": ("offramp_request_phase_seconds", {"phase": "queue"}),
    "te_request_inference_duration": ("offramp_request_phase_seconds", {"phase": "inference"}),
    "te_request_input_length": ("offramp_request_tokens", {}),
    "te_predict_duration": ("offramp_request_seconds", {}),
    "te_batch_next_size": ("offramp_batch_rows", {}),
    "te_batch_next_tokens": ("offramp_batch_tokens", {}),
}
"""Their name -> ours, and the labels of the samples that count."""


def _rows(samples: Samples) -> tuple[float, float]:
    """Return how many rows were answered, and how many failed."""
    return _sum(samples, "offramp_rows_total"), _sum(samples, "offramp_row_failures_total")


def _sum(samples: Samples, name: str, **labels: str) -> float:
    return sum(value for own_labels, value in samples.get(name, ()) if labels.items() <= own_labels.items())


def _counter(name: str, values: Mapping[tuple[str, str], float]) -> list[str]:
    lines = [f"# TYPE {name} counter"]
    for (label, of), value in values.items():
        lines.append(f'{name}{{{label}="{of}"}} {value:g}' if label else f"{name} {value:g}")
    return lines


def _histogram(name: str, own: str, labels: Mapping[str, str], samples: Samples) -> list[str]:
    buckets: dict[str, float] = {}
    for own_labels, value in samples.get(f"{own}_bucket", ()):
        if labels.items() <= own_labels.items():
            buckets[own_labels["le"]] = buckets.get(own_labels["le"], 0) + value
    lines = [f"# TYPE {name} histogram"]
    lines += [f'{name}_bucket{{le="{bound}"}} {value:g}' for bound, value in buckets.items()]
    count = _sum(samples, f"{own}_count", **labels)
    return [*lines, f"{name}_sum {_sum(samples, f'{own}_sum', **labels)!r}", f"{name}_count {count:g}"]
