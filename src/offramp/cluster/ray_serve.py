"""The server as a deployment of Ray Serve: every wire format of `offramp serve`, on as many machines as a cluster has.

serve run offramp.cluster.ray_serve:build model=model num_cpus=2 max_replicas=8
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict, TypeVar

from offramp.errors import InvalidInput, one_line

try:
    import msgspec
    from ray import serve

    from offramp.cluster.serve_replica import Replica
    from offramp.model.points import load_point
    from offramp.model.text_folder import load_text_config
    from offramp.serving.served import FULL
    from offramp.serving.settings import ModelSettings, ServerSettings
except ModuleNotFoundError as error:
    raise InvalidInput(f"a deployment of Ray Serve needs {error.name}: pip install 'offramp[ray]'") from None

if TYPE_CHECKING:
    from ray.serve import Application

Converted = TypeVar("Converted")

WAITING = 2
"""Requests of a replica at the same time, as a multiple of the rows that its models take: beyond that limit they answer
themselves, in their wire format, and so do health and metrics."""
PER_CORE = 2
"""Requests in flight for each core from which on replicas are added: one that is computed, and one that waits."""
END_S = 10.0
"""How long after the drain a replica may take to end; then it is ended."""


class Scaling(TypedDict, total=False):
    """How many replicas there are, and of what size; see `deployment`."""

    num_cpus: int
    min_replicas: int
    max_replicas: int
    target_ongoing_requests: float


def deployment(
    model: str | os.PathLike[str] | ServerSettings | Mapping[str, str | os.PathLike[str] | ServerSettings],
    *,
    num_cpus: int = 1,
    min_replicas: int = 1,
    max_replicas: int | None = None,
    target_ongoing_requests: float | None = None,
) -> Application:
    """Return the server of a model as an application of Ray Serve, which `serve.run` takes.

    Each replica answers all wire formats, as `offramp serve` does, with processes that use its cores and no more.

    Args:
        model: a folder that every machine of the cluster has, or a hub name; or with what a server is started. Several
            by name = each replica has all of them, each with its share of the cores, and the request's header
            `serve_multiplexed_model_id` chooses one; without it the first one answers.
        num_cpus: cores of a replica, at least one for each model.
        min_replicas: of the deployment, at least 1.
        max_replicas: that Ray Serve adds under load; None = `min_replicas`.
        target_ongoing_requests: a replica's mean requests in flight, above which replicas are added and below which
            they are removed; None = two for each core.

    Raises:
        InvalidInput: a number is out of its range, or a folder that is here has no model. What else is wrong with a
            model, a replica logs in one line; after three tries `serve.run` raises, and `serve status` has the reason.

    Example:
        >>> from ray import serve
        >>> from offramp.cluster.ray_serve import deployment
        >>> serve.run(deployment("model", num_cpus=2, max_replicas=8))
    """
    max_replicas = min_replicas if max_replicas is None else max_replicas
    if not 1 <= min_replicas <= max_replicas:
        raise InvalidInput(f"replicas must be from 1 to max_replicas, got {min_replicas} to {max_replicas}")
    servers = _servers(model)
    cores = _cores_per_model(servers, num_cpus)
    target = PER_CORE * num_cpus if target_ongoing_requests is None else target_ongoing_requests
    if not target > 0:
        raise InvalidInput(f"target_ongoing_requests must be above 0, got {target:g}")
    limits = [settings.limits for settings in servers.values()]
    log_requests = any(settings.log_level == "debug" for settings in servers.values())
    scaled = {"min_replicas": min_replicas, "max_replicas": max_replicas, "target_ongoing_requests": target}
    fixed = min_replicas == max_replicas
    return serve.deployment(
        Replica,
        name="offramp",
        num_replicas=min_replicas if fixed else None,
        autoscaling_config=None if fixed else scaled,
        ray_actor_options={"num_cpus": num_cpus},
        max_ongoing_requests=WAITING * sum(limit.max_concurrent_requests for limit in limits),
        graceful_shutdown_timeout_s=max(limit.drain_s for limit in limits) + END_S,
        logging_config={"enable_access_log": log_requests},
    ).bind(servers, cores)


def _servers(
    model: str | os.PathLike[str] | ServerSettings | Mapping[str, str | os.PathLike[str] | ServerSettings],
) -> dict[str, ServerSettings]:
    """Return what each model is served with, by its name; "" = its own, which the replica knows."""
    if not isinstance(model, Mapping):
        return {"": _settings(model)}
    if not model:
        raise InvalidInput("a deployment needs at least one model, got none")
    servers = {name: _settings(one) for name, one in model.items()}
    return {name: replace(one, model=replace(one.model, name=one.model.name or name)) for name, one in servers.items()}


def _settings(model: str | os.PathLike[str] | ServerSettings) -> ServerSettings:
    """Return a model's settings; of a folder that is here, with its whole path, and after a look into it.

    Raises:
        InvalidInput: the folder has no model, or not the point; or there is none, and no other machine could have it.
    """
    settings = model if isinstance(model, ServerSettings) else ServerSettings(ModelSettings(os.fspath(model)))
    folder, point = Path(settings.model.folder), settings.model.operating_point
    if folder.is_dir():
        load_text_config(folder)
        if point not in (None, FULL):
            load_point(folder, point)
        return replace(settings, model=replace(settings.model, folder=str(folder.resolve())))
    if not folder.is_absolute() and (len(folder.parts) != 2 or folder.parts[0] == ".."):  # not the form of a hub name
        raise InvalidInput(f"there is no folder {folder}; one that only the replicas have needs its whole path")
    return settings


def _cores_per_model(servers: Mapping[str, ServerSettings], num_cpus: int) -> int:
    """Return how many cores each model of a replica may use.

    Raises:
        InvalidInput: less than one, or less than the processes and threads that its settings ask for.
    """
    cores = num_cpus // len(servers)
    if cores < 1:
        raise InvalidInput(f"num_cpus must be at least {len(servers)}, a core for each model; got {num_cpus}")
    for model in (settings.model for settings in servers.values()):
        wanted = (model.workers or 1) * (model.threads or 1)
        if wanted > cores:
            raise InvalidInput(f"{model.folder}: workers x threads must be at most {cores}, its cores; got {wanted}")
    return cores


def build(arguments: dict[str, Any]) -> Application:
    """Return the deployment for the arguments of `serve run`, or of a config file of Ray Serve.

    Args:
        arguments: the numbers of `deployment`, which may be text; `model`, a folder or the fields of `ModelSettings`,
            and beside it other fields of `ServerSettings`, as `ladder` and `limits`; or `models`, all that by name.

    Raises:
        InvalidInput: as `deployment`; an argument that there is not, or of another type.
    """
    scaling = {name: value for name, value in arguments.items() if name in Scaling.__annotations__}
    server_fields = {name: value for name, value in arguments.items() if name not in scaling}
    numbers = _convert(scaling, Scaling)
    models = server_fields.pop("models", None)
    if models is None:
        return deployment(_server_of(server_fields), **numbers)
    if server_fields or not isinstance(models, dict):
        wrong = f"{next(iter(server_fields))} beside them" if server_fields else repr(models)
        raise InvalidInput(f"models must be folders or settings by name, and nothing beside them; got {wrong}")
    servers = {name: _server_of(one if isinstance(one, dict) else {"model": one}) for name, one in models.items()}
    return deployment(servers, **numbers)


def _server_of(fields: dict[str, Any]) -> ServerSettings:
    """Return what a model is served with; its `model` may be a folder alone.

    Raises:
        InvalidInput: there is no model, or a field that there is not, or of another type.
    """
    if "model" not in fields:
        raise InvalidInput(f"a deployment needs the argument model=FOLDER; got: {', '.join(fields) or 'none'}")
    model = fields["model"]
    fields = fields | {"model": model if isinstance(model, dict) else {"folder": model}}
    settings = _convert(fields, ServerSettings)
    if unknown := _unknown(fields, msgspec.to_builtins(settings)):
        raise InvalidInput(f"a deployment has no argument {unknown!r}")
    return settings


def _convert(fields: dict[str, Any], wanted: type[Converted]) -> Converted:
    """Return fields as an object of a type; numbers may be text."""
    try:
        return msgspec.convert(fields, wanted, strict=False)
    except msgspec.ValidationError as error:
        raise InvalidInput(f"an argument of the deployment is of another type: {one_line(error)}") from None


def _unknown(fields: Mapping[str, Any], known: Mapping[str, Any]) -> str | None:
    """Return the first name, with those that it stands in, that is not known; None = there is none."""
    for name, value in fields.items():
        if name not in known:
            return name
        if isinstance(value, Mapping) and (inner := _unknown(value, known[name])) is not None:
            return f"{name}.{inner}"
    return None
