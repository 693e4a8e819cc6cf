"""The deployment of Ray Serve: its answers are the predictor's, in every wire format; its options are sound.

One local cluster serves two models from one deployment: the same folder in int8 and in float32.
"""

from __future__ import annotations

import http.client
import json
import os
import pickle
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("ray.serve", reason="Ray is not installed: pip install 'offramp[ray]'")

import ray
from ray import serve

from offramp import InvalidInput, Predictor
from offramp.cluster.ray_serve import build, deployment
from offramp.serving.served import Limits
from offramp.serving.settings import LadderSettings, ModelSettings, ServerSettings
from support.server import alive, command, descendants

PREFIX = "/tickets"
TEXTS = ["good cat", "a bad day and a worse night", "fine", "the film was good , the end was not"]
JSON = {"content-type": "application/json"}


class Deployed:
    """What a client sees of a deployment."""

    def __init__(self, port: int) -> None:
        self.port = port

    def get(self, path: str, **headers: str) -> tuple[int, Any]:
        return self._ask("GET", path, None, headers)

    def post(self, path: str, body: Any, **headers: str) -> tuple[int, Any]:
        return self._ask("POST", path, json.dumps(body), headers)

    def _ask(self, method: str, path: str, body: str | None, headers: dict[str, str]) -> tuple[int, Any]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        connection.request(method, path, body, JSON | headers)
        answer = connection.getresponse()
        content = answer.read()
        self.headers = answer.getheaders()
        connection.close()
        return answer.status, json.loads(content) if answer.getheader("content-type") == JSON[
            "content-type"
        ] else content


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployed]:
    """A local cluster of four cores, by its own count; ports are free ones."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
    ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False, _temp_dir=str(tmp_path_factory.mktemp("ray")))
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    yield Deployed(port)
    serve.shutdown()
    ray.shutdown()


@pytest.fixture(scope="module")
def two(cluster: Deployed, exported: Path) -> Iterator[Deployed]:
    """One deployment of two models, below a prefix."""
    limits = Limits(max_client_batch_size=8)
    servers = {
        "int8": ServerSettings(ModelSettings(str(exported), engine="onnx-int8"), limits),
        "float": ServerSettings(ModelSettings(str(exported), engine="onnx"), limits),
    }
    serve.run(deployment(servers, num_cpus=2), name="two", route_prefix=PREFIX)
    yield cluster
    started = workers("two")
    serve.delete("two")
    assert not any(map(alive, started))  # they end with their replica


def replicas(name: str) -> list[int]:
    return [pid for pid in descendants(os.getpid()) if f"ServeReplica:{name}:" in command(pid)]


def workers(name: str) -> list[int]:
    children = [child for pid in replicas(name) for child in descendants(pid)]
    return [pid for pid in children if "offramp.serving.worker" in command(pid)]


# --- answers ------------------------------------------------------------------------------------------------


def test_three_wire_formats_answer_what_the_predictor_does(two: Deployed, exported: Path) -> None:
    wanted = Predictor.load(exported, engine="onnx-int8")(TEXTS)
    assert len({answer["label"] for answer in wanted}) > 1

    status, tei = two.post(f"{PREFIX}/predict", {"inputs": [[text] for text in TEXTS]})
    assert (status, [row[0]["label"] for row in tei]) == (200, [answer["label"] for answer in wanted])
    assert [row[0]["score"] for row in tei] == pytest.approx([answer["score"] for answer in wanted], abs=1e-6)

    status, vllm = two.post(f"{PREFIX}/classify", {"input": TEXTS, "early_exit": {"details": True}})
    assert (status, [row["label"] for row in vllm["data"]]) == (200, [answer["label"] for answer in wanted])
    assert [max(row["probs"]) for row in vllm["data"]] == pytest.approx([row["score"] for row in wanted], abs=1e-6)

    status, kserve = two.post(f"{PREFIX}/v1/models/int8:predict", {"instances": TEXTS, "early_exit": {"details": True}})
    names = ["bad", "fine", "good"]
    assert (status, [names[number] for number in kserve["predictions"]]) == (200, [row["label"] for row in wanted])
    assert [row["exit_layer"] for row in kserve["early_exit"]] == [answer["exit_layer"] for answer in wanted]


def test_a_bad_row_is_named_and_fails_no_other_request(two: Deployed) -> None:
    bad: list[tuple[list[Any], bool, int, str]] = [
        (["good cat", "", "fine"], True, 400, "input 1: the text is blank"),
        (["good cat", "cat " * 100], False, 422, "input 1: a text has more than 32 tokens"),
        (["good cat", 3], True, 422, "inputs[1][0]"),
        (["good cat"] * 9, True, 422, "batch size 9 > maximum allowed batch size 8"),
    ]
    good = two.post(f"{PREFIX}/predict", {"inputs": [["good cat"]]})

    def ask(case: tuple[list[Any], bool, int, str] | None) -> tuple[int, Any]:
        inputs, truncate = (["good cat"], True) if case is None else case[:2]
        return Deployed(two.port).post(
            f"{PREFIX}/predict", {"inputs": [[text] for text in inputs], "truncate": truncate}
        )

    cases = [None, *bad, None, *bad, None] * 2
    with ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(ask, cases))
    for case, (status, answer) in zip(cases, answers, strict=True):
        if case is None:
            assert (status, answer) == good
        else:
            assert (status, case[3] in answer["error"]) == (case[2], True), answer


# --- the server behind the proxy ----------------------------------------------------------------------------


def test_health_pages_and_unknown_paths_are_the_servers_own(two: Deployed) -> None:
    for path in ("/health", "/readyz", "/livez", ""):
        assert two.get(PREFIX + path)[0] == 200, path
    assert two.get(f"{PREFIX}/nowhere") == (
        404,
        {"error": "no such route; GET /openapi.json lists them", "error_type": "not_found"},
    )
    assert "/predict" in two.get(f"{PREFIX}/openapi.json")[1]["paths"]
    assert b'offramp_build_info{engine="onnx-int8",model="int8"' in two.get(f"{PREFIX}/metrics")[1]
    assert two.get(f"{PREFIX}/info")[1]["max_client_batch_size"] == 8


def test_an_answer_has_one_request_id_the_clients_own_if_there_is_one(two: Deployed) -> None:
    two.get(f"{PREFIX}/health", **{"x-request-id": "abc-1"})
    assert [value for name, value in two.headers if name == "x-request-id"] == ["abc-1"]
    two.get(f"{PREFIX}/health")
    assert len([value for name, value in two.headers if name == "x-request-id"]) == 1


def test_the_header_chooses_the_model(two: Deployed) -> None:
    for header in ("serve_multiplexed_model_id", "serve-multiplexed-model-id"):
        status, info = two.get(f"{PREFIX}/info", **{header: "float"})
        assert (status, info["served_model_name"]) == (200, "float")
    body = {"inputs": "good cat", "raw_scores": True}
    scores = [two.post(f"{PREFIX}/predict", body, serve_multiplexed_model_id=name)[1] for name in ("int8", "float")]
    assert scores[0] == two.post(f"{PREFIX}/predict", body)[1] != scores[1]


@pytest.mark.parametrize(
    ("path", "body", "error"),
    [
        ("/predict", {"inputs": "a"}, {"error": "{}", "error_type": "Validation"}),
        (
            "/classify",
            {"input": "a"},
            {"error": {"message": "{}", "type": "NotFoundError", "param": None, "code": 404}},
        ),
        ("/health", None, {"error": "{}", "error_type": "unknown_model"}),
    ],
)
def test_a_model_that_there_is_not_is_refused_in_the_wire_format(
    two: Deployed, path: str, body: Any, error: Any
) -> None:
    ask = two.get if body is None else lambda path, **headers: two.post(path, body, **headers)
    message = "no model 'other'; this deployment has: int8, float"
    wanted = json.loads(json.dumps(error).replace("{}", message))
    assert ask(PREFIX + path, serve_multiplexed_model_id="other") == (404, wanted)


def test_a_replica_has_as_many_processes_as_cores_and_starts_them_again(two: Deployed) -> None:
    before = workers("two")
    assert len(before) == 2
    for pid in before:
        assert b"OMP_NUM_THREADS=1\0" in Path(f"/proc/{pid}/environ").read_bytes()
        os.kill(pid, signal.SIGKILL)
    assert two.post(f"{PREFIX}/predict", {"inputs": "good cat"})[0] == 200  # it waits for the new process
    assert two.get(f"{PREFIX}/readyz")[0] == 200
    assert not set(workers("two")) & set(before)


# --- Ray Serve's side ---------------------------------------------------------------------------------------


@pytest.fixture
def one(cluster: Deployed, exported: Path) -> Iterator[Deployed]:
    """A second deployment, of one model, which may have two replicas of a core each."""
    settings = ServerSettings(ModelSettings(str(exported), engine="onnx-int8"))
    serve.run(deployment(settings, max_replicas=2, target_ongoing_requests=0.5), name="one", route_prefix="/one")
    yield cluster
    serve.delete("one")


def running(name: str) -> int:
    (status,) = serve.status().applications[name].deployments.values()
    return status.replica_states.get("RUNNING", 0)


def until(done: Callable[[], bool], seconds: float) -> bool:
    end = time.monotonic() + seconds
    while not done() and time.monotonic() < end:
        time.sleep(0.2)
    return done()


@pytest.mark.slow
def test_load_adds_a_replica_and_costs_no_answer(one: Deployed) -> None:
    statuses, enough = Counter[int](), threading.Event()

    def ask() -> None:
        while not enough.is_set():
            statuses[Deployed(one.port).post("/one/predict", {"inputs": "good cat"})[0]] += 1

    with ThreadPoolExecutor(4) as threads:
        for _ in range(4):
            threads.submit(ask)
        added = until(lambda: running("one") == 2, 180)
        enough.set()
    assert added
    assert set(statuses) == {200}


@pytest.mark.slow
def test_a_replica_that_is_killed_is_started_again_and_its_processes_end(one: Deployed) -> None:
    (replica,), (worker,) = replicas("one"), workers("one")
    os.kill(replica, signal.SIGKILL)
    assert until(lambda: not alive(worker), 10)
    assert until(lambda: one.post("/one/predict", {"inputs": "good cat"})[0] == 200, 120)
    assert replicas("one") != [replica]


@pytest.mark.slow
def test_requests_in_flight_are_answered_before_a_replica_ends(one: Deployed) -> None:
    (worker,) = workers("one")
    os.kill(worker, signal.SIGSTOP)
    with ThreadPoolExecutor(9) as threads:
        answers = [threads.submit(Deployed(one.port).post, "/one/predict", {"inputs": "good cat"}) for _ in range(8)]
        time.sleep(1)
        deleting = threads.submit(serve.delete, "one")
        time.sleep(1)
        assert [answer.done() for answer in answers] == [False] * 8
        os.kill(worker, signal.SIGCONT)
        assert [answer.result()[0] for answer in answers] == [200] * 8
        deleting.result()
    assert not alive(worker)


@pytest.mark.slow
def test_a_model_that_cannot_be_loaded_ends_the_deployment_with_one_line(cluster: Deployed, exported: Path) -> None:
    missing = ModelSettings(str(exported), engine="openvino")
    with pytest.raises(RuntimeError, match="Deploying application bad failed"):
        serve.run(deployment(ServerSettings(missing)), name="bad", route_prefix="/bad")
    (status,) = serve.status().applications["bad"].deployments.values()
    assert status.message.splitlines()[-1].startswith(f"RuntimeError: {exported}: no openvino/")
    serve.delete("bad")


# --- options ------------------------------------------------------------------------------------------------


def options_of(application: serve.Application) -> Any:
    return application._bound_deployment


def test_a_deployment_is_of_fixed_size_unless_more_replicas_are_allowed(exported: Path) -> None:
    fixed = options_of(deployment(exported, num_cpus=3, min_replicas=2))
    assert (fixed.name, fixed.num_replicas, fixed.ray_actor_options["num_cpus"]) == ("offramp", 2, 3)
    assert fixed._deployment_config.autoscaling_config is None
    scaled = options_of(deployment(exported, num_cpus=3, max_replicas=8))._deployment_config.autoscaling_config
    assert (scaled.min_replicas, scaled.max_replicas, scaled.target_ongoing_requests) == (1, 8, 6)
    scaled = options_of(deployment(exported, max_replicas=2, target_ongoing_requests=0.5))._deployment_config
    assert scaled.autoscaling_config.target_ongoing_requests == 0.5


def test_limits_of_the_proxy_leave_refusals_to_the_server(exported: Path) -> None:
    settings = ServerSettings(ModelSettings(str(exported)), Limits(max_concurrent_requests=100, drain_s=7))
    options = options_of(deployment(settings))
    assert options.max_ongoing_requests == 200
    assert options._deployment_config.graceful_shutdown_timeout_s == 17


def test_folders_travel_as_whole_paths_and_names_to_the_servers(
    exported: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(exported.parent)
    servers, cores = options_of(
        deployment({"en": exported.name, "de": "/only/there", "hub": "org/name"}, num_cpus=7)
    ).init_args
    assert cores == 2
    assert {name: settings.model.folder for name, settings in servers.items()} == {
        "en": str(exported),
        "de": "/only/there",
        "hub": "org/name",
    }
    assert {settings.model.name for settings in servers.values()} == {"en", "de", "hub"}
    assert pickle.loads(pickle.dumps(servers)) == servers


def test_arguments_of_serve_run_are_text_and_those_of_a_file_are_nested(exported: Path) -> None:
    plain = options_of(build({"model": str(exported), "num_cpus": "2", "max_replicas": "4"}))
    assert plain.init_args == ({"": ServerSettings(ModelSettings(str(exported)))}, 2)
    assert plain._deployment_config.autoscaling_config.max_replicas == 4
    nested = {
        "model": {"folder": str(exported), "engine": "onnx-int8"},
        "ladder": {"latency_target_ms": 20},
        "limits": {"max_client_batch_size": 64},
        "api_keys": ["one"],
    }
    model = ModelSettings(str(exported), engine="onnx-int8")
    limits, ladder = Limits(max_client_batch_size=64), LadderSettings(latency_target_ms=20)
    wanted = ServerSettings(model, limits, ladder, api_keys=("one",))
    assert options_of(build(nested)).init_args == ({"": wanted}, 1)
    servers, _ = options_of(build({"models": {"a": nested, "b": str(exported)}, "num_cpus": 2})).init_args
    assert list(servers) == ["a", "b"]
    assert servers["a"].ladder == ladder


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ({}, "a deployment needs the argument model=FOLDER; got: none"),
        ({"folder": "m"}, "a deployment needs the argument model=FOLDER; got: folder"),
        ({"model": "modle"}, "there is no folder modle; one that only the replicas have needs its whole path"),
        ({"model": "/m", "num_cpus": 0}, "num_cpus must be at least 1, a core for each model; got 0"),
        ({"models": {"a": "/a", "b": "/b"}}, "num_cpus must be at least 2, a core for each model; got 1"),
        ({"model": "/m", "min_replicas": 0}, "replicas must be from 1 to max_replicas, got 0 to 0"),
        ({"model": "/m", "min_replicas": 3, "max_replicas": 2}, "replicas must be from 1 to max_replicas, got 3 to 2"),
        ({"model": "/m", "target_ongoing_requests": -1}, "target_ongoing_requests must be above 0, got -1"),
        ({"model": "/m", "num_cpus": "two"}, "an argument of the deployment is of another type: Expected `int`"),
        ({"model": "/m", "replicas": 2}, "a deployment has no argument 'replicas'"),
        ({"model": "/m", "ladder": {"flor": "4x"}}, "a deployment has no argument 'ladder.flor'"),
        (
            {"model": "/m", "models": {}},
            "models must be folders or settings by name, and nothing beside them; got model",
        ),
        ({"models": "/m"}, "models must be folders or settings by name, and nothing beside them; got '/m'"),
        ({"models": {}}, "a deployment needs at least one model, got none"),
        (
            {"model": {"folder": "/m", "workers": 2, "threads": 2}, "num_cpus": 3},
            "/m: workers x threads must be at most 3, its cores; got 4",
        ),
    ],
)
def test_wrong_arguments_are_one_line(arguments: dict[str, Any], line: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        build(arguments)
    assert str(caught.value).startswith(line)
    assert "\n" not in str(caught.value)


def test_a_folder_that_is_here_is_looked_into(exported: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"config\.json"):
        deployment(tmp_path)
    with pytest.raises(InvalidInput, match="no operating point 'quick'"):
        deployment(ServerSettings(ModelSettings(str(exported), operating_point="quick")))


def test_without_ray_one_line_says_what_to_install() -> None:
    program = "import sys; sys.modules['ray'] = None; import offramp.cluster.ray_serve"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    last = done.stderr.splitlines()[-1]
    assert last.endswith("a deployment of Ray Serve needs ray: pip install 'offramp[ray]'")
