"""`offramp serve`."""

from __future__ import annotations

import ipaddress
import os
import sys
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from offramp.cli.options import FILE, FOLDER, Number, json_option, silence_transformers
from offramp.errors import InvalidInput
from offramp.inference.engine import ENGINES

if TYPE_CHECKING:
    from offramp.serving.settings import LadderSettings

NEEDS = ("httptools", "msgspec", "prometheus_client", "starlette", "uvicorn")
TRACES_NEED = {
    "opentelemetry.sdk": "opentelemetry-sdk",
    "opentelemetry.exporter.otlp.proto.http": "opentelemetry-exporter-otlp-proto-http",
}
COUNT = click.IntRange(min=1)


@click.command()
@click.argument("folder", type=FOLDER, envvar="MODEL_ID")
@click.option("--host", help="Address to listen on.  [env: HOSTNAME, if it is an IP address; default: 0.0.0.0]")
@click.option(
    "--port", type=click.IntRange(0, 65535), default=8080, show_default=True, envvar="PORT", help="0 = any free one."
)
@click.option("--operating-point", default="default", help='A saved point, or "full".  [default: "default"]')
@click.option("--ladder", is_flag=True, help="Move along the ladder of `calibrate --ladder`: looser under load.")
@click.option("--floor", help="The loosest point of the ladder that load may lead to.  [default: the last one]")
@click.option(
    "--latency-target-ms",
    type=Number(min=0, min_open=True),
    help="Step down the ladder to answer within it.  [default: 50]",
)
@click.option(
    "--audit-share",
    type=Number(0, 1),
    help="Of rows that also run at full depth, to watch the ladder's certificates.  [default: 0.01]",
)
@click.option(
    "--proposals",
    type=click.Path(path_type=str),
    help="Folder of what is proposed after drift.  [default: proposals in FOLDER]",
)
@click.option(
    "--depth-budget",
    type=Number(min=0, min_open=True),
    metavar="LAYERS",
    help="Step down the ladder while rows run more, on average.",
)
@click.option("--engine", type=click.Choice(["auto", *ENGINES]), default="auto", show_default=True)
@click.option("--workers", type=COUNT, help="Processes that run the model.  [default: cores / threads; for torch 1]")
@click.option("--threads", type=COUNT, help="Threads of each of them.  [default: 1 for a graph; for torch all cores]")
@click.option("--allow-other-engine", is_flag=True, help="Run a point with a certificate on another engine.")
@click.option("--served-model-name", envvar="SERVED_MODEL_NAME", help="Name in requests.  [default: the folder's]")
@click.option(
    "--max-concurrent-requests",
    type=COUNT,
    default=512,
    show_default=True,
    envvar="MAX_CONCURRENT_REQUESTS",
    help="Rows at the same time; beyond them 429.",
)
@click.option(
    "--max-batch-tokens", type=COUNT, default=16384, show_default=True, envvar="MAX_BATCH_TOKENS", help="Of a batch."
)
@click.option(
    "--max-batch-requests", type=COUNT, envvar="MAX_BATCH_REQUESTS", help="Rows of a batch.  [default: by saved costs]"
)
@click.option(
    "--max-client-batch-size",
    type=COUNT,
    default=32,
    show_default=True,
    envvar="MAX_CLIENT_BATCH_SIZE",
    help="Rows of a request; beyond them 422.",
)
@click.option(
    "--auto-truncate/--no-auto-truncate",
    default=True,
    show_default=True,
    envvar="AUTO_TRUNCATE",
    help="Cut texts that are too long, or refuse them.",
)
@click.option(
    "--payload-limit",
    type=COUNT,
    default=2_000_000,
    show_default=True,
    envvar="PAYLOAD_LIMIT",
    help="Bytes of a body; beyond them 413.",
)
@click.option(
    "--timeout", type=Number(min=0, min_open=True), default=30.0, show_default=True, help="Seconds; then 504."
)
@click.option("--drain", type=Number(min=0), default=30.0, show_default=True, help="Seconds to answer after SIGTERM.")
@click.option("--api-key", "api_keys", multiple=True, envvar="API_KEY", help="Bearer key; @FILE = a key a line.")
@click.option("--api-key-file", type=FILE, help="A key a line.")
@click.option("--cors-allow-origin", multiple=True, envvar="CORS_ALLOW_ORIGIN", help="Of a page in a browser; * = any.")
@click.option("--log-format", type=click.Choice(["text", "json"]), default="text", show_default=True)
@click.option(
    "--log-level", type=click.Choice(["debug", "info", "warning", "error"]), default="info", show_default=True
)
@click.option("--otlp-endpoint", envvar="OTLP_ENDPOINT", help="Send spans to this collector of OpenTelemetry.")
@json_option
def serve(folder: Path, host: str | None, port: int, as_json: bool, **options: Any) -> None:
    """Serve a model over HTTP to clients of text-embeddings-inference, vLLM, KServe, Triton, OpenAI and Cohere.

    GET /readyz answers 200 once the model is warm; GET /openapi.json lists the routes, GET /metrics is for Prometheus.
    SIGTERM or Ctrl-C: requests in flight are answered, new ones are not; a second one ends at once.

    --json prints one object once the server is ready, with its URL.

    The environment names of text-embeddings-inference are understood: MODEL_ID, PORT, API_KEY, MAX_BATCH_TOKENS, ...

    \b
    offramp serve model
    offramp serve model --port 9000 --workers 4 --operating-point default
    offramp serve model --ladder --floor keep-98 --latency-target-ms 50
    offramp serve model --api-key @keys.txt --log-format json
    curl localhost:8080/predict -H 'content-type: application/json' -d '{"inputs": "where is my parcel"}'
    """
    if os.name != "posix":
        raise InvalidInput("serve runs on Linux and macOS")
    if missing := [name for name in NEEDS if not _is_installed(name)]:
        raise InvalidInput(f"serve needs {', '.join(missing)}: pip install 'offramp[serve]'")
    if options["otlp_endpoint"] is not None and not all(map(_is_installed, TRACES_NEED)):
        raise InvalidInput(f"--otlp-endpoint needs more packages: pip install {' '.join(TRACES_NEED.values())}")
    _check_folder(folder)
    silence_transformers()
    from offramp.serving.served import Limits
    from offramp.serving.settings import ModelSettings, ServerSettings
    from offramp.serving.supervisor import Supervisor, listen, url_of

    model = ModelSettings(
        os.fspath(folder),
        options["served_model_name"],
        options["operating_point"],
        options["engine"],
        options["workers"],
        options["threads"],
        options["allow_other_engine"],
    )
    limits = Limits(**{name: options[name] for name in LIMITS}, timeout_s=options["timeout"], drain_s=options["drain"])
    keys = tuple(_keys(options["api_keys"], options["api_key_file"]))
    ladder = _ladder(options)
    listening = listen(host or _host_of(os.environ), port)
    settings = ServerSettings(
        model,
        limits,
        ladder,
        url_of(listening),
        keys,
        options["cors_allow_origin"],
        options["log_format"],
        options["log_level"],
        as_json,
        options["otlp_endpoint"],
    )
    sys.exit(Supervisor(settings, listening).run())


LADDER = ("floor", "latency_target_ms", "audit_share", "proposals", "depth_budget")
LIMITS = (
    "max_concurrent_requests",
    "max_batch_tokens",
    "max_batch_requests",
    "max_client_batch_size",
    "payload_limit",
    "auto_truncate",
)


def _ladder(options: Mapping[str, Any]) -> LadderSettings | None:
    """Return the settings of the ladder; None without one.

    Raises:
        UsageError: an option of the ladder without it.
    """
    from offramp.serving.settings import LadderSettings

    settings = {name: options[name] for name in LADDER if options[name] is not None}
    if settings and not options["ladder"]:
        raise click.UsageError(f"--{next(iter(settings)).replace('_', '-')} goes with --ladder")
    return LadderSettings(**settings) if options["ladder"] else None


def _is_installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # not even its parent
        return False


def _check_folder(folder: Path) -> None:
    """Refuse what cannot be a model at once; whether it is one, the server sees when it loads it.

    Raises:
        InvalidInput: there is no such folder, or it has no config.json.
    """
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise InvalidInput(f"{folder} holds no model: it has no config.json")
    elif folder.is_absolute() or folder.parts[0] == ".." or len(folder.parts) != 2:  # not the form of a hub name
        raise InvalidInput(f"there is no folder {folder}")


def _host_of(environment: Mapping[str, str]) -> str:
    """Return the address that HOSTNAME names; Docker sets it to the container's name, which is none."""
    try:
        return str(ipaddress.ip_address(environment.get("HOSTNAME", "")))
    except ValueError:
        return "0.0.0.0"


def _keys(options: Sequence[str], file: Path | None) -> list[str]:
    """Return the keys of the options, and of files that they name.

    Raises:
        InvalidInput: a file has none, or a key has a character that no header can have.
    """
    keys = [option for option in options if not option.startswith("@")]
    files = [Path(option[1:]) for option in options if option.startswith("@")]
    for path in [*files, *([] if file is None else [file])]:
        try:
            lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is no UTF-8 text"
            raise InvalidInput(f"the file of keys {path} cannot be read: {reason}") from None
        if not lines:
            raise InvalidInput(f"{path} has no key; it should have one a line")
        keys += lines
    for number, key in enumerate(keys, 1):
        if not key:
            raise InvalidInput(f"key {number} is empty")
        if not (key.isascii() and key.isprintable() and " " not in key):
            raise InvalidInput(f"key {number} has a character that a header cannot have; use letters, digits, - and _")
    return keys
