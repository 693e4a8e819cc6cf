"""What does Ray Serve's proxy cost a request, against `offramp serve` on the same cores?

    python benchmarks/ray_serve.py model                                       # any exported model's folder
    python benchmarks/ray_serve.py model --rounds 1 --seconds 2 --connections 1 8   # a try

One text a request to `/predict`, over loopback, from a client in a process of its own (`serving_client.py`), which
sends the next request of a connection as soon as its answer has come. The servers take turns, and each is started anew
for each of its turns: `offramp serve`, the deployment behind Ray Serve's proxy, and the deployment behind HAProxy
(`RAY_SERVE_ENABLE_HA_PROXY=1`), all with `--cores` processes that run the model. Results lie under `--state`, and a run
goes on where it was stopped. Writes `benchmarks/results/ray_serve.json` and `.md`. A quarter of an hour on two idle
cores.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

from machine import as_lines, provenance
from resumable import load_state, save_state
from serving_process import Server, running

HERE, RESULTS = Path(__file__).parent, Path(__file__).parent / "results"
OWN, PROXY, HAPROXY = "offramp serve", "Ray Serve", "Ray Serve, HAProxy"
SERVERS = (OWN, PROXY, HAPROXY)
CONNECTIONS = (1, 2, 4, 8, 16, 32)
WARM_UP_S = 2.0
TEXTS = 200
WORDS = ("where", "is", "my", "parcel", "and", "when", "will", "it", "come", "please", "change", "the", "card")


def bodies() -> list[str]:
    """Return the requests: texts of 3 to 20 words, the same in each run."""
    draw = random.Random(0)
    return [json.dumps({"inputs": " ".join(draw.choices(WORDS, k=draw.randint(3, 20)))}) for _ in range(TEXTS)]


@contextmanager
def started(name: str, options: argparse.Namespace) -> Iterator[Server]:
    """Start a server, and yield it once it answers."""
    if name == OWN:
        workers = ["--workers", str(options.cores), "--engine", options.engine]
        with running(["-m", "offramp", "serve", str(options.folder), "--port", "{port}", *workers]) as server:
            yield server
        return
    os.environ["RAY_SERVE_ENABLE_HA_PROXY"] = str(int(name == HAPROXY))
    with tempfile.TemporaryDirectory(prefix="ray") as folder:  # a short path: sockets lie below it
        arguments = [str(options.folder.resolve()), options.engine, str(options.cores), folder]
        with running([__file__, "serve", *arguments, "{port}"]) as server:
            yield server


def serve_with_ray(folder: str, engine: str, cores: str, temporary: str, port: str) -> None:
    """Serve a model with Ray Serve until this process is ended."""
    import signal

    import ray
    from ray import serve

    from offramp.cluster.ray_serve import build

    ray.init(num_cpus=int(cores), include_dashboard=False, log_to_driver=False, _temp_dir=temporary)
    serve.start(http_options={"host": "127.0.0.1", "port": int(port)})
    serve.run(build({"model": {"folder": folder, "engine": engine}, "num_cpus": cores}))
    signal.sigwait({signal.SIGTERM})
    serve.shutdown()
    ray.shutdown()


def client(server: Server, plan: dict[str, Any]) -> dict[str, Any]:
    """Run a plan of `serving_client.py`."""
    full = {"port": server.port, "path": "/predict", "bodies": bodies(), "mode": "closed", **plan}
    done = subprocess.run(
        [sys.executable, str(HERE / "serving_client.py")],
        input=json.dumps(full),
        capture_output=True,
        text=True,
        check=True,
    )
    report: dict[str, Any] = json.loads(done.stdout)
    return report


def measure(options: argparse.Namespace, state: dict[str, Any]) -> None:
    """Measure what is missing, round by round."""
    for number in range(options.rounds):
        for name in SERVERS:
            key = f"{number} {name}"
            if key in state["turns"]:
                continue
            with started(name, options) as server:
                client(server, {"connections": 8, "seconds": WARM_UP_S})
                turn = {}
                for connections in options.connections:
                    turn[str(connections)] = client(server, {"connections": connections, "seconds": options.seconds})
            state["turns"][key] = turn
            save_state(options.state, state)
            rates = ", ".join(f"{count}: {report['a_second']:.0f}/s" for count, report in turn.items())
            print(f"round {number + 1} of {options.rounds}, {name}: {rates}", flush=True)


def summary(state: dict[str, Any], options: argparse.Namespace) -> dict[str, Any]:
    """Return the medians of the rounds, and the least and the most, by server and connections."""
    rows = {}
    for name in SERVERS:
        turns = [state["turns"][f"{number} {name}"] for number in range(options.rounds)]
        rows[name] = {
            str(count): {
                field: [median(values), min(values), max(values)]
                for field in ("a_second", "p50_ms", "p99_ms", "failed")
                if (values := [turn[str(count)][field] for turn in turns])
            }
            for count in options.connections
        }
    about = provenance()
    about["versions"] = {**about["versions"], "ray": version("ray")}  # type: ignore[dict-item]
    settings = {name: getattr(options, name) for name in ("engine", "cores", "rounds", "seconds")}
    return {"about": about, "settings": {"model": options.folder.name, **settings}, "servers": rows}


def page(result: dict[str, Any]) -> str:
    """Return the results as Markdown."""
    settings = result["settings"]
    lines = [
        "# Ray Serve beside offramp serve",
        "",
        as_lines(result["about"]),
        "",
        f"Model {settings['model']}, {settings['engine']}, cores of the model: {settings['cores']}; one text a "
        f"request, all connections always ask; {settings['rounds']} rounds of {settings['seconds']:g} s in "
        "turn, median [least, most].",
        "",
        "| connections | server | requests a second | p50, ms | p99, ms | failed |",
        "|---|---|---|---|---|---|",
    ]
    for count in next(iter(result["servers"].values())):
        for name, rows in result["servers"].items():
            row = rows[count]
            rate, p50, p99 = (
                f"{middle:.{digits}f} [{least:.{digits}f}, {most:.{digits}f}]"
                for digits, (middle, least, most) in ((0, row["a_second"]), (1, row["p50_ms"]), (1, row["p99_ms"]))
            )
            lines.append(f"| {count} | {name} | {rate} | {p50} | {p99} | {row['failed'][2]:.0f} |")
    return "\n".join([*lines, ""])


def main() -> None:
    """Measure, and write the results."""
    if sys.argv[1:2] == ["serve"]:
        serve_with_ray(*sys.argv[2:])
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--engine", default="onnx-int8")
    parser.add_argument("--cores", type=int, default=1, help="processes that run the model; HTTP takes the others")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--connections", type=int, nargs="+", default=CONNECTIONS)
    parser.add_argument("--state", type=Path, default=Path("ray_serve_state.json"))
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    state = load_state(options.state, {"turns": {}})
    measure(options, state)
    result = summary(state, options)
    options.results.mkdir(parents=True, exist_ok=True)
    (options.results / "ray_serve.json").write_text(json.dumps(result, indent=1) + "\n")
    (options.results / "ray_serve.md").write_text(page(result))


if __name__ == "__main__":
    main()
