"""What does `offramp serve` do with requests that no honest client sends?

    python benchmarks/serving_abuse.py

20,000 requests to servers of two tiny models (a graph in two processes, a model in torch), from four clients at once:
schemathesis on the OpenAPI document, hypothesis on the bodies of every wire format, and connections that no HTTP
library makes (`tests/support/abuse.py`). Between them an honest client asks for texts, whose answers must be the
predictor's to the last bit. Counted are the statuses, requests that took longer than a bound, and the memory of every
process of the servers. Writes `benchmarks/results/serving_abuse.json` and `.md`. Ten minutes on two cores.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path
from typing import Any

import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

import offramp
from machine import as_lines, provenance

HERE, RESULTS = Path(__file__).parent, Path(__file__).parent / "results"
sys.path.insert(0, str(HERE.parent / "tests"))

from support.abuse import BODIES, BOUND_S, HEADERS, TEXT, TWO_CLASSES, Abuser, bodies, connections  # noqa: E402
from support.graphs import exported_folder  # noqa: E402
from support.models import save_folder, tiny_model  # noqa: E402
from support.server import Server, descendants, serving  # noqa: E402

TEXTS = (TEXT, "bad\0 cat", "\u202e good", "the dog ran " * 400, "\U0001f642 fine", '\\"', "awful", "tree " * 3)
CLIENTS, PARTS = 4, 10
SHARES = {"hypothesis": 0.6, "schemathesis": 0.25, "connections": 0.1, "honest": 0.05}


def examples(count: int, seed: int) -> Callable[[Any], Any]:
    """Return hypothesis's settings for a part of the run."""
    from hypothesis import seed as seeded

    chosen = settings(
        max_examples=max(count, 1),
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    return lambda test: seeded(seed)(chosen(test))


def send_bodies(three: Abuser, two: Abuser, count: int, seed: int) -> None:
    """Send wrong bodies of every wire format, to a model of three classes or, where it ranks, of two."""

    def send_to(path: str, number: int) -> None:
        abuser = two if path in TWO_CLASSES else three

        @examples(count // len(BODIES), number)
        @given(body=bodies(path), headers=st.sampled_from(HEADERS), chunked=st.integers(0, 9))
        def send(body: bytes, headers: dict[str, str], chunked: int) -> None:
            abuser.send(path, iter([body[:9], body[9:]]) if chunked == 0 else body, headers)

        send()

    for number, path in enumerate(BODIES):
        send_to(path, seed * 100 + number)
    three.send("/predict", b'{"inputs": "' + b"a" * 10_000_000 + b'"}', {})


def send_schema(abuser: Abuser, document: dict[str, Any], count: int, seed: int) -> None:
    """Send what schemathesis makes of the OpenAPI document, valid and not."""
    schema = schemathesis.openapi.from_dict(document)
    operations = [result.ok() for result in schema.get_all_operations()]
    for number, operation in enumerate(operations):
        for mode in (schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE):
            try:
                cases = operation.as_strategy(generation_mode=mode)
            except Exception:  # an operation without anything to get wrong
                continue

            @examples(count // (2 * len(operations)), seed * 100 + number)
            @given(case=cases)
            def send(case: Any) -> None:
                try:
                    request = case.as_transport_kwargs(base_url=f"http://127.0.0.1:{abuser.port}")
                    import requests

                    prepared = requests.Request(**{k: v for k, v in request.items() if k != "cookies"}).prepare()
                    body = prepared.body.encode() if isinstance(prepared.body, str) else prepared.body or b""
                    headers = {k: v for k, v in prepared.headers.items() if k.lower() != "content-length"}
                    path, method = prepared.path_url, prepared.method
                    path.encode("ascii")
                except ValueError:  # what no client library can send
                    abuser.statuses["not sent"] += 1
                    return
                abuser.send(path, body, headers, method)

            try:
                send()
            except Exception as error:  # hypothesis cannot make what a schema excludes
                if type(error).__name__ not in ("Unsatisfiable", "InvalidArgument"):
                    raise


def send_connections(abuser: Abuser, count: int) -> None:
    """Send halves, several requests at once, odd methods, headers and paths."""
    some = connections()
    for number in range(count):
        abuser.send_raw(*some[number % len(some)])


def ask(abuser: Abuser, expected: list[dict[str, float]], count: int) -> None:
    """Ask for texts; an answer that differs from the predictor's is a fault."""
    for number in range(count):
        text, scores = TEXTS[number % len(TEXTS)], expected[number % len(TEXTS)]
        content = abuser.send("/predict", json.dumps({"inputs": text}).encode(), {})
        answer = {label["label"]: label["score"] for label in json.loads(content)} if content else None
        if answer != scores:
            abuser.faults.append(f"a wrong answer to {text[:40]!r}: {answer}")


def memory(server: Server) -> dict[str, float]:
    """Return the resident megabytes of each process of a server, by its number."""
    pages = {pid: int(Path(f"/proc/{pid}/statm").read_text().split()[1]) for pid in descendants(server.process.pid)}
    return {str(pid): round(count * 4096 / 1e6, 1) for pid, count in pages.items()}


def run(requests: int) -> dict[str, Any]:
    """Abuse a server; return what was counted."""
    with tempfile.TemporaryDirectory() as folder:
        model = exported_folder(Path(folder) / "model")
        answers = offramp.Predictor.load(model, "onnx-int8")(list(TEXTS), top_k=None)
        expected = [answer["scores"] for answer in answers]
        options = ("--engine", "onnx-int8", "--workers", "2", "--served-model-name", "tiny")
        pairs = save_folder(Path(folder) / "pairs", tiny_model(num_labels=2))
        with (
            serving(model, *options) as server,
            serving(pairs, "--engine", "torch", "--threads", "1", "--served-model-name", "tiny") as of_pairs,
            ThreadPoolExecutor(CLIENTS) as pool,
        ):
            document = json.loads(server.get("/openapi.json")[1])
            clients = {name: Abuser(server.port) for name in SHARES}
            clients["hypothesis, two classes"] = Abuser(of_pairs.port)
            sizes = []
            done = 0
            for part in count():
                if done >= requests:
                    break
                each = {name: round(requests * share / PARTS) for name, share in SHARES.items()}
                tasks = [
                    pool.submit(
                        send_bodies,
                        clients["hypothesis"],
                        clients["hypothesis, two classes"],
                        each["hypothesis"],
                        part,
                    ),
                    pool.submit(send_schema, clients["schemathesis"], document, each["schemathesis"], part),
                    pool.submit(send_connections, clients["connections"], each["connections"]),
                    pool.submit(ask, clients["honest"], expected, each["honest"]),
                ]
                for task in tasks:
                    task.result()
                sizes.append(memory(server) | memory(of_pairs))
                done = sum(sum(client.statuses.values()) for client in clients.values())
                print(f"part {part + 1}: {done} requests, {sizes[-1]}", flush=True)
            ready = server.get("/readyz")[0]
            for client in clients.values():
                client.close()
    return {
        "statuses": {name: dict(sorted(client.statuses.items())) for name, client in clients.items()},
        "faults": [fault for client in clients.values() for fault in client.faults],
        "slowest_s": round(max(client.slowest_s for client in clients.values()), 2),
        "ready_after": ready,
        "memory_mb": sizes,
        "provenance": provenance(),
    }


def table(result: dict[str, Any]) -> str:
    """Return the result as Markdown."""
    total = Counter[str]()
    for statuses in result["statuses"].values():
        total.update(statuses)
    names = sorted(total)
    rows = [("client", *names), ("---",) * (len(names) + 1)]
    for name, statuses in result["statuses"].items():
        rows.append((name, *(f"{statuses.get(status, 0):,}" for status in names)))
    rows.append(("all", *(f"{total[status]:,}" for status in names)))
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    sizes = result["memory_mb"]
    grown = ", ".join(
        " -> ".join(f"{size.get(pid, 0):g}" for size in (sizes[0], sizes[len(sizes) // 2], sizes[-1]))
        for pid in sizes[0]
    )
    return "\n".join(
        [
            "# Requests that no honest client sends",
            "",
            f"{sum(total.values()):,} requests; faults: {len(result['faults'])}; the slowest took "
            f"{result['slowest_s']:g} s (bound {BOUND_S:g} s); /readyz afterwards: {result['ready_after']}.",
            "",
            *lines,
            "",
            f"Memory of each process after the first part, half of them and all, MB: {grown}.",
            "",
            *(f"- {fault}" for fault in result["faults"][:20]),
            as_lines(result["provenance"]),
            "",
        ]
    )


def main() -> None:
    """Run, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=20_000)
    parser.add_argument("-o", "--output", type=Path, default=RESULTS / "serving_abuse")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    result = run(arguments.requests)
    arguments.output.with_suffix(".json").write_text(json.dumps(result, indent=1) + "\n")
    arguments.output.with_suffix(".md").write_text(table(result))
    print(table(result))
    sys.exit(bool(result["faults"]))


if __name__ == "__main__":
    main()
