"""`latentd serve`: one process or several, as the settings and the machine say."""

from __future__ import annotations

import argparse
import dataclasses
import logging
import os
import sys
from pathlib import Path

from latentd import logs, settings
from latentd.errors import EXIT_CONFIG, ConfigError
from latentd.models import storage
from latentd.runtime import provider
from latentd.settings import Settings

log = logging.getLogger(__name__)


def run(args: argparse.Namespace) -> int:
    """Serve until a signal; returns the exit status."""
    try:
        chosen = settings.load_settings(vars(args))
        logs.configure(chosen.log_level, chosen.log_format)
        for name in settings.unknown_env_vars():
            log.warning("%s is set and is no setting of serve.", name)
        storage.check_root(Path(chosen.bundles))
        # Workers count otherwise; and where this folder is missing, prometheus-client would fail.
        os.environ.pop("PROMETHEUS_MULTIPROC_DIR", None)
        workers = chosen.workers or provider.default_worker_count(chosen.provider)
        chosen = dataclasses.replace(chosen, workers=workers)
        return _serve_many(chosen) if workers > 1 else _serve_alone(chosen)
    except ConfigError as error:
        print(f"latentd: {error}", file=sys.stderr)
        return EXIT_CONFIG


def _serve_alone(chosen: Settings) -> int:
    from latentd.process import server

    server.run(server.Server(chosen))
    return 0


def _serve_many(chosen: Settings) -> int:
    from latentd.process.supervisor import Supervisor

    return Supervisor(chosen).run()
