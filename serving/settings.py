"""The server's settings: flag > LATENTD_* environment > default, each spelled once, here.

The flag of `max_rows` is --max-rows and its environment variable LATENTD_MAX_ROWS.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, get_type_hints

from latentd.errors import ConfigError

_HIGHEST_PORT: Final = 65535


def _setting(
    default: Any,
    text: str,
    *,
    choices: tuple[str, ...] = (),
    least: float = 0,
    most: float = math.inf,
) -> Any:
    metadata = {"help": text, "choices": choices, "least": least, "most": most}
    return dataclasses.field(default=default, metadata=metadata)


@dataclass(frozen=True)
class Settings:
    """What an operator may set. Numbers are checked against their least and most by `read`."""

    bundles: str = _setting("models", "Folder of bundles: <root>/<model>/<version>/.")
    default_model: str = _setting("", "Model for requests that name none. Empty: the only one.")
    keep_versions: int = _setting(2, "Versions of each model to serve, the newest.", least=1)
    poll_seconds: float = _setting(
        5.0, "Seconds between looks for new versions under --bundles. 0: only at start-up."
    )
    pin: str = _setting(
        "", "Versions to serve as the newest: model=version, with commas between several."
    )

    load_trial: bool = _setting(
        True,
        "Try a new version in a process of its own first, which is given up when it takes too long "
        "or too much memory. false: load it where it serves, without these limits.",
    )
    load_timeout_seconds: float = _setting(
        300.0, "Longest that the trial of a version may take; then it is refused. 0: no limit."
    )
    load_memory_mib: int = _setting(
        0,
        "Most memory, in MiB, that the trial of a version may take, its files included. 0: four "
        "fifths of what the machine or the control group has available.",
    )
    state: str = _setting(
        "",
        "Folder that notes which versions are being loaded: one whose load ended the server is "
        "tried last after a restart. Empty: $STATE_DIRECTORY, else latentd in $XDG_STATE_HOME or "
        "~/.local/state, else in the temporary folder.",
    )

    host: str = _setting("127.0.0.1", "Address to listen on; 0.0.0.0 or :: for every interface.")
    port: int = _setting(
        50051, "Port for gRPC. 0: any free one, named in the log.", most=_HIGHEST_PORT
    )
    metrics_port: int = _setting(
        9464, "Port for Prometheus metrics over HTTP. 0: any free one.", most=_HIGHEST_PORT
    )
    reflection: bool = _setting(True, "Let tools such as grpcurl list the services.")

    tls_cert: str = _setting("", "PEM file of the server's certificate chain; with it, TLS.")
    tls_key: str = _setting("", "PEM file of its private key.")
    tls_client_ca: str = _setting(
        "", "PEM file of authorities: callers must show a certificate of theirs (mutual TLS)."
    )
    tokens: str = _setting(
        "",
        "File of bearer tokens' digests and scopes (latentd token makes its lines): callers must "
        "send one of them. Health is exempt.",
    )
    max_connections: int = _setting(4096, "Connections at a time; more are not accepted.", least=1)
    max_connection_age_seconds: float = _setting(
        0.0,
        "Ask callers to connect anew after so long, so that new servers get their share. 0: never.",
    )

    listener: str = _setting(
        "auto",
        "How calls are taken. core drives gRPC's core directly, aio is grpc.aio at several times "
        "the cost; auto takes core where a rehearsal of it works.",
        choices=("auto", "core", "aio"),
    )
    workers: int = _setting(
        0,
        "Processes that share the port, each with its models, queues and limits. 0: one with "
        "CUDA, else one for each CPU, eight at most.",
    )
    provider: str = _setting(
        "auto",
        "Where graphs run. cuda refuses to start without a GPU; auto says what it chose, cuda or "
        "cpu.",
        choices=("auto", "cuda", "cpu"),
    )
    gpu_arena_limit_mib: int = _setting(
        0,
        "Most of a GPU's memory, in MiB, that one graph may take to work in, weights included; its "
        "batches have theirs besides. 0: no limit.",
    )
    cuda_graphs: bool = _setting(
        True, "On a GPU: record what a graph does for each size of batch, and replay it."
    )
    intra_op_threads: int = _setting(
        0, "CPU threads of one graph's run. 0: one, or for a slow graph the worker's share of CPUs."
    )
    max_batch_rows: int = _setting(0, "Most rows in one batch. 0: measured at start-up.")
    max_batch_latency_ms: float = _setting(
        50.0, "Longest run, in milliseconds, that the measured batch may take.", least=0.1
    )

    max_rows: int = _setting(4096, "Rows in one request.", least=1)
    max_draws: int = _setting(1024, "Draws for each row in one Score request.", least=1)
    max_message_mib: int = _setting(64, "Size of one message, either way, in MiB.", least=1)
    queue_rows: int = _setting(
        16384,
        "Rows that may wait in one lane and are served before a new request; more are shed.",
        least=1,
    )
    queue_mib: int = _setting(256, "MiB of rows that may wait in one lane.", least=1)
    max_unsent_response_mib: int = _setting(
        256,
        "MiB of answers that callers have not taken yet. Beyond it those that have waited longest "
        "are given up.",
        least=1,
    )
    max_partial_request_mib: int = _setting(
        128,
        "MiB of requests that have come in part. Beyond it those that have been on their way "
        "longest are given up.",
        least=1,
    )

    watchdog_seconds: float = _setting(
        60.0,
        "A batch that runs longer has hung: liveness says so, and a worker is replaced. 0: never.",
    )
    lame_duck_seconds: float = _setting(
        1.0, "After SIGTERM: time for clients to see NOT_SERVING and go elsewhere."
    )
    drain_seconds: float = _setting(20.0, "After that: time for calls under way to finish.")
    log_level: str = _setting(
        "info", "Least severe message to log.", choices=("debug", "info", "warning", "error")
    )
    log_format: str = _setting(
        "text", "Log lines for people or for machines.", choices=("text", "json")
    )
    access_log: str = _setting(
        "none",
        "Calls to log a line about, with what each cost. What fails inside the server always is.",
        choices=("none", "errors", "all"),
    )
    tracing: str = _setting(
        "auto",
        "OpenTelemetry spans of calls. auto sends them where OTEL_EXPORTER_OTLP_ENDPOINT says "
        "where to; on refuses to start without the tracing extra.",
        choices=("auto", "on", "off"),
    )

    @property
    def max_message_bytes(self) -> int:
        """--max-message-mib in bytes."""
        return self.max_message_mib << 20

    @property
    def unsent_response_bytes(self) -> int:
        """--max-unsent-response-mib in bytes."""
        return self.max_unsent_response_mib << 20

    @property
    def partial_request_bytes(self) -> int:
        """--max-partial-request-mib in bytes."""
        return self.max_partial_request_mib << 20


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """One flag for each field, unset when not given, so that `read` can look further."""
    for field in dataclasses.fields(Settings):
        choices = "|".join(field.metadata["choices"])
        default = f" Default: {field.default}." if field.default != "" else ""
        parser.add_argument(
            _flag(field.name),
            metavar=choices or field.name.rpartition("_")[2].upper(),
            help=field.metadata["help"] + default,
        )


def load_settings(
    flags: Mapping[str, str | None], environment: Mapping[str, str] = os.environ
) -> Settings:
    """Settings from parsed flags and the environment. Raises ConfigError naming what is wrong."""
    types = get_type_hints(Settings)
    values: dict[str, Any] = {}
    for field in dataclasses.fields(Settings):
        given = {_flag(field.name): flags.get(field.name)}
        given[_variable(field.name)] = environment.get(_variable(field.name))
        for source, text in given.items():  # the flag first
            if text is not None:
                values[field.name] = _parse(source, text, types[field.name], field.metadata)
                break
    settings = Settings(**values)
    if bool(settings.tls_cert) != bool(settings.tls_key):
        raise ConfigError("--tls-cert and --tls-key go together: give both or none.")
    if settings.tls_client_ca and not settings.tls_cert:
        raise ConfigError("--tls-client-ca needs --tls-cert and --tls-key.")
    return settings


def unknown_env_vars(environment: Mapping[str, str] = os.environ) -> list[str]:
    """LATENTD_* variables that set nothing: a typing error, or another program's."""
    known = {_variable(field.name) for field in dataclasses.fields(Settings)}
    known |= {"LATENTD_SERVER", "LATENTD_DATA", "LATENTD_FUZZ_SECONDS"}  # the client's; the tests'
    return sorted(n for n in environment if n.startswith("LATENTD_") and n not in known)


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _variable(name: str) -> str:
    return "LATENTD_" + name.upper()


def _parse(source: str, text: str, kind: type, metadata: Mapping[str, Any]) -> Any:
    """The text as the field's type, checked; `source` is the flag or variable it came from."""
    if kind is bool:
        words = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
        if text.lower() not in words:
            raise ConfigError(f"{source}={text}: say true or false.")
        return words[text.lower()]
    try:
        value = kind(text)
    except ValueError:
        noun = {int: "a whole number", float: "a number"}[kind]
        raise ConfigError(f"{source}={text}: this must be {noun}.") from None
    if metadata["choices"] and value not in metadata["choices"]:
        raise ConfigError(f"{source}={text}: choose from {', '.join(metadata['choices'])}.")
    if kind is float and not math.isfinite(value):
        raise ConfigError(f"{source}={text}: this must be a finite number.")
    if kind in (int, float) and not metadata["least"] <= value <= metadata["most"]:
        raise ConfigError(f"{source}={text}: this must be {_bounds(metadata)}.")
    return value


def _bounds(metadata: Mapping[str, Any]) -> str:
    least, most = metadata["least"], metadata["most"]
    return f"{least} to {most}" if most < math.inf else f"at least {least:g}"
