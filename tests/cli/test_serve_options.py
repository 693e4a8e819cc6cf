"""The options of `offramp serve` and the environment names of text-embeddings-inference become settings."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest

from offramp.cli.main import COMMANDS, main
from offramp.serving.settings import ServerSettings
from support.command_line import offramp

ENVIRONMENT = ("MODEL_ID", "PORT", "HOSTNAME", "API_KEY", "MAX_CONCURRENT_REQUESTS", "AUTO_TRUNCATE", "PAYLOAD_LIMIT")
Started = Callable[..., ServerSettings]


@pytest.fixture
def started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Started:
    """Run the command up to its supervisor, and return the settings as the other process reads them."""
    (tmp_path / "config.json").write_text("{}")
    caught: list[Any] = []

    class Recorded:
        def __init__(self, settings: ServerSettings, listening: Any) -> None:
            with listening:
                caught.append((ServerSettings.from_json(settings.to_json()), listening.getsockname()[0]))

        def run(self) -> int:
            return 0

    def start(*arguments: Any, **environment: str) -> ServerSettings:
        for name in ENVIRONMENT:
            monkeypatch.delenv(name, raising=False)
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr("offramp.serving.supervisor.Supervisor", Recorded)
        folder = () if "MODEL_ID" in environment else (tmp_path,)
        result = offramp("serve", *folder, "--port", "0", *arguments)
        assert result.exit_code == 0, result.output
        settings, start.host = caught[-1]  # type: ignore[attr-defined]
        return settings

    return start


def test_the_defaults_are_those_of_text_embeddings_inference(started: Started, tmp_path: Path) -> None:
    settings = started()
    limits = settings.limits
    assert (settings.model.folder, settings.model.operating_point) == (str(tmp_path), "default")
    assert (limits.max_concurrent_requests, limits.max_batch_tokens, limits.max_client_batch_size) == (512, 16384, 32)
    assert (limits.payload_limit, limits.auto_truncate, limits.max_batch_requests) == (2_000_000, True, None)
    assert (settings.api_keys, settings.cors_origins, settings.log_format) == ((), (), "text")


def test_the_environment_counts_where_an_option_does_not(started: Started, tmp_path: Path) -> None:
    settings = started(
        "--payload-limit", "7", MODEL_ID=str(tmp_path), API_KEY="k", MAX_CONCURRENT_REQUESTS="3", AUTO_TRUNCATE="false",
        PAYLOAD_LIMIT="5",
    )  # fmt: skip
    assert settings.model.folder == str(tmp_path)
    assert (settings.api_keys, settings.limits.max_concurrent_requests) == (("k",), 3)
    assert (settings.limits.auto_truncate, settings.limits.payload_limit) == (False, 7)


@pytest.mark.parametrize(
    ("hostname", "option", "host"),
    [("4f6a3b", (), "0.0.0.0"), ("127.0.0.1", (), "127.0.0.1"), ("127.0.0.1", ("--host", "0.0.0.0"), "0.0.0.0")],
)
def test_hostname_counts_if_it_is_an_address(started: Started, hostname: str, option: Any, host: str) -> None:
    started(*option, HOSTNAME=hostname)
    assert started.host == host  # type: ignore[attr-defined]


def test_keys_come_from_options_and_files(started: Started, tmp_path: Path) -> None:
    (tmp_path / "a").write_text("one\n\n two \n")
    (tmp_path / "b").write_text("three")
    settings = started("--api-key", "zero", "--api-key", f"@{tmp_path / 'a'}", "--api-key-file", tmp_path / "b")
    assert settings.api_keys == ("zero", "one", "two", "three")


@pytest.mark.parametrize(
    ("arguments", "text", "code"),
    [
        (("--api-key-file", "{folder}/none"), "none", 1),
        (("--api-key-file", "{folder}/empty"), "empty has no key; it should have one a line", 1),
        (("--api-key", ""), "key 1 is empty", 1),
        (("--api-key", "@no-such-file"), "the file of keys no-such-file cannot be read: No such file or directory", 1),
        (("--api-key", "schlüssel"), "key 1 has a character that a header cannot have", 1),
        (("--api-key", ""), "key 1", 1),
        (("--port", "70000"), "70000", 2),
        (("--timeout", "0"), "0", 2),
        (("--engine", "tensorrt"), "tensorrt", 2),
    ],
)
def test_wrong_options_get_one_line(tmp_path: Path, arguments: tuple[str, ...], text: str, code: int) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "empty").write_text("\n")
    result = offramp("serve", tmp_path, *(argument.format(folder=tmp_path) for argument in arguments))
    assert result.exit_code == code
    assert text in result.output.splitlines()[-1]


@pytest.mark.parametrize("folder", ["/no/such", "./none", "../a", "a/b/c"])
def test_what_is_no_folder_and_no_hub_name_is_refused_at_once(folder: str) -> None:
    result = offramp("serve", folder, "--port", "0")
    assert (result.exit_code, result.output) == (1, f"Error: there is no folder {Path(folder)}\n")


def test_without_the_extra_it_names_the_command_that_installs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "config.json").write_text("{}")
    monkeypatch.setattr("offramp.cli.serve.find_spec", lambda name: None if name == "uvicorn" else name)
    result = offramp("serve", tmp_path)
    assert (result.exit_code, result.output) == (1, "Error: serve needs uvicorn: pip install 'offramp[serve]'\n")


def test_spans_without_the_packages_for_them_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("offramp.cli.serve._is_installed", lambda name: not name.startswith("opentelemetry"))
    result = offramp("serve", tmp_path, "--otlp-endpoint", "http://localhost:4318")
    assert result.exit_code == 1
    assert "pip install opentelemetry-sdk opentelemetry-exporter-otlp-proto-http" in result.output


def test_it_is_a_command_with_examples() -> None:
    assert "offramp serve model" in offramp("serve", "--help").output


@pytest.mark.parametrize("number", ["nan", "inf"])
def test_no_command_takes_nan_or_infinity_for_a_number(number: str) -> None:
    commands = [main.get_command(click.Context(main), name) for name in COMMANDS]
    options = [option for command in commands if command for option in command.params]
    numbers = [option for option in options if isinstance(option.type, click.types.FloatParamType)]
    assert len(numbers) > 15
    for option in numbers:
        with pytest.raises(click.BadParameter, match=r"finite|range"):
            option.type.convert(number, option, None)
