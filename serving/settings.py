"""The settings of `latentd serve`: a flag overrides LATENTD_* variables, they override the default.

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

_MAX_PORT: Final = 65535


def _setting(
    default: Any,
    help: str,
    *,
    choices: tuple[str, ...] = (),
    min: float = 0,
    max: float = math.inf,
) -> Any:
    metadata = {"help": help, "choices": choices, "min": min, "max": max}
    return dataclasses.field(default=default, metadata=metadata)


@dataclass(frozen=True)
class Settings:
    """What an operator can set. `load_settings` checks numbers against their min and max."""

    bundles: str = _setting("models", "Folder of bundles: <root>/<model>/<version>/.")
    default_model: str = _setting("", "Model for requests that name none. Empty: the only one.")
    keep_versions: int = _setting(2, "Versions of each model to serve, the newest.", min=1)
    poll_seconds: float = _setting(
        5.0, "Seconds between scans for new versions under --bundles. 0: only at start-up."
    )
    pin: str = _setting("", "Versions to serve as the newest: model=version, separated by commas.")

    load_trial: bool = _setting(
        True,
        "Try a new version in a child process first, which is killed if it takes too long or too "
        "much memory. false: load it in the server, without these limits.",
    )
    load_timeout_seconds: float = _setting(
        300.0, "Time limit of a version's trial; then it is rejected. 0: no limit."
    )
    load_memory_mib: int = _setting(
        0,
        "Memory limit of a version's trial, in MiB, its files included. 0: four fifths of what the "
        "machine or the control group has available.",
    )
    state: str = _setting(
        "",
        "Folder that records which versions are being loaded: a restarted server loads one that "
        "crashed it last. Empty: $STATE_DIRECTORY, else latentd in $XDG_STATE_HOME or "
        "~/.local/state, else in the temporary folder.",
    )

    host: str = _setting("127.0.0.1", "Address to listen on; 0.0.0.0 or :: for every interface.")
    port: int = _setting(50051, "Port for gRPC. 0: any free port; see the log.", max=_MAX_PORT)
    metrics_port: int = _setting(
        9464,
        "Port for Prometheus metrics and for probes, over HTTP. 0: any free port.",
        max=_MAX_PORT,
    )
    http_port: int | None = _setting(
        None,
        "Port for HTTP: samples as pictures, diffusers' remote VAE, the Open Inference Protocol. "
        "0: any free port. Empty: no HTTP.",
        max=_MAX_PORT,
    )
    reflection: bool = _setting(True, "Let tools such as grpcurl list the services.")

    tls_cert: str = _setting("", "PEM file of the server's certificate chain; with it, TLS.")
    tls_key: str = _setting("", "PEM file of its private key.")
    tls_client_ca: str = _setting(
        "", "PEM file of certificate authorities: clients must present a certificate (mutual TLS)."
    )
    tokens: str = _setting(
        "",
        "File of digests and scopes of bearer tokens (latentd token makes its lines): clients must "
        "send one of the tokens. Health is exempt.",
    )
    max_connections: int = _setting(4096, "Maximum open connections; more are not accepted.", min=1)
    max_connection_age_seconds: float = _setting(
        0.0,
        "Make clients reconnect after this time, so that new servers get a share. 0: never.",
    )

    listener: str = _setting(
        "auto",
        "gRPC server. core uses gRPC's core directly; aio is grpc.aio, at several times the CPU "
        "cost; auto chooses core if its self-test succeeds.",
        choices=("auto", "core", "aio"),
    )
    workers: int = _setting(
        0,
        "Processes that share the port, each with its models, queues and limits. 0: one with "
        "CUDA, else one for each CPU, up to eight.",
    )
    provider: str = _setting(
        "auto",
        "Where graphs run. cuda does not start without a GPU; auto chooses cuda or cpu and logs "
        "which.",
        choices=("auto", "cuda", "cpu"),
    )
    gpu_arena_limit_mib: int = _setting(
        0,
        "GPU memory of one graph's arena, in MiB, weights included; buffers of batches are extra. "
        "0: no limit.",
    )
    cuda_graphs: bool = _setting(
        True, "On a GPU: record a CUDA graph for each batch size, and replay it."
    )
    intra_op_threads: int = _setting(
        0, "CPU threads of one graph's run. 0: one, or for a slow graph the worker's share of CPUs."
    )
    max_batch_rows: int = _setting(0, "Maximum rows in one batch. 0: measured at start-up.")
    max_batch_latency_ms: float = _setting(
        50.0, "Maximum duration of the measured batch, in milliseconds.", min=0.1
    )
    run_memory_mib: int = _setting(
        0,
        "Memory that one run of a graph with free axes may take, in MiB; larger rows are rejected. "
        "0: a quarter of what is free when the model is loaded, for each worker its share.",
    )

    max_rows: int = _setting(4096, "Maximum rows in one request.", min=1)
    max_draws: int = _setting(1024, "Maximum draws for each row in one Score request.", min=1)
    max_message_mib: int = _setting(64, "Maximum size of one message, in MiB.", min=1)
    queue_rows: int = _setting(
        16384,
        "Maximum rows that wait for one graph before a new request; a large row counts as several. "
        "More are shed.",
        min=1,
    )
    queue_mib: int = _setting(256, "Maximum MiB of rows that wait for one graph.", min=1)
    max_unsent_response_mib: int = _setting(
        256,
        "Maximum MiB of responses that clients have not read. Beyond it the oldest are dropped.",
        min=1,
    )
    max_partial_request_mib: int = _setting(
        128,
        "Maximum MiB of requests that have arrived in part. Beyond it the oldest are dropped.",
        min=1,
    )

    watchdog_seconds: float = _setting(
        60.0,
        "A batch that runs longer has hung: liveness fails, and a worker is restarted. 0: never.",
    )
    lame_duck_seconds: float = _setting(
        1.0, "After SIGTERM: time for clients to see NOT_SERVING and go to another server."
    )
    drain_seconds: float = _setting(20.0, "After that: time for in-flight calls to finish.")
    log_level: str = _setting(
        "info", "Lowest level of messages to log.", choices=("debug", "info", "warning", "error")
    )
    log_format: str = _setting(
        "text", "Log lines for people or for machines.", choices=("text", "json")
    )
    access_log: str = _setting(
        "none",
        "Calls to log, with what each cost. Internal errors are always logged.",
        choices=("none", "errors", "all"),
    )
    tracing: str = _setting(
        "auto",
        "OpenTelemetry spans of calls. auto sends them if OTEL_EXPORTER_OTLP_ENDPOINT is set; on "
        "does not start without the tracing extra.",
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
    """Add one flag for each field, with default None: `load_settings` sees which were given."""
    for field in dataclasses.fields(Settings):
        choices = "|".join(field.metadata["choices"])
        default = f" Default: {field.default}." if field.default not in ("", None) else ""
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
        raise ConfigError("--tls-cert and --tls-key must be set together.")
    if settings.tls_client_ca and not settings.tls_cert:
        raise ConfigError("--tls-client-ca requires --tls-cert and --tls-key.")
    return settings


def unknown_env_vars(environment: Mapping[str, str] = os.environ) -> list[str]:
    """LATENTD_* variables that set nothing: misspelled, or of another program."""
    known = {_variable(field.name) for field in dataclasses.fields(Settings)}
    known |= {"LATENTD_SERVER", "LATENTD_DATA", "LATENTD_FUZZ_SECONDS"}  # the client's; the tests'
    return sorted(n for n in environment if n.startswith("LATENTD_") and n not in known)


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _variable(name: str) -> str:
    return "LATENTD_" + name.upper()


def _parse(source: str, text: str, kind: Any, metadata: Mapping[str, Any]) -> Any:
    """The text as the field's type, checked; `source` is the flag or variable it came from."""
    if kind == int | None:
        return _parse(source, text, int, metadata) if text else None
    if kind is bool:
        words = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
        if text.lower() not in words:
            raise ConfigError(f"{source}={text}: must be true or false.")
        return words[text.lower()]
    try:
        value = kind(text)
    except ValueError:
        noun = {int: "an integer", float: "a number"}[kind]
        raise ConfigError(f"{source}={text}: must be {noun}.") from None
    if metadata["choices"] and value not in metadata["choices"]:
        raise ConfigError(f"{source}={text}: must be one of {', '.join(metadata['choices'])}.")
    if kind is float and not math.isfinite(value):
        raise ConfigError(f"{source}={text}: must be a finite number.")
    if kind in (int, float) and not metadata["min"] <= value <= metadata["max"]:
        raise ConfigError(f"{source}={text}: must be {_bounds(metadata)}.")
    return value


def _bounds(metadata: Mapping[str, Any]) -> str:
    low, high = metadata["min"], metadata["max"]
    return f"{low} to {high}" if high < math.inf else f"at least {low:g}"
