"""Settings: flags, environment variables and defaults, and what is refused."""

from __future__ import annotations

import dataclasses

import pytest

from latentd import settings
from latentd.errors import ConfigError


def test_flag_wins_over_environment_and_environment_over_default():
    def port(flags, environment):
        return settings.load_settings(flags, environment).port

    assert port({}, {}) == 50051
    assert port({}, {"LATENTD_PORT": "1"}) == 1
    assert port({"port": "2"}, {"LATENTD_PORT": "1"}) == 2
    assert port({"port": None}, {"LATENTD_PORT": "1"}) == 1


@pytest.mark.parametrize(
    ("flag", "value", "message"),
    [
        ("port", "fifty", "--port=fifty: must be an integer"),
        ("port", "-1", "--port=-1: must be 0 to 65535"),
        ("port", "65536", "--port=65536: must be 0 to 65535"),
        ("max_rows", "0", "--max-rows=0: must be at least 1"),
        ("provider", "tpu", "--provider=tpu: must be one of auto, cuda, cpu"),
        ("reflection", "maybe", "--reflection=maybe: must be true or false"),
        ("drain_seconds", "inf", "--drain-seconds=inf: must be a finite number"),
        ("drain_seconds", "nan", "--drain-seconds=nan"),
    ],
)
def test_bad_setting_is_refused_with_its_flag_or_variable(flag, value, message):
    with pytest.raises(ConfigError, match=message):
        settings.load_settings({flag: value}, {})
    variable = "LATENTD_" + flag.upper()
    with pytest.raises(ConfigError, match=variable):
        settings.load_settings({}, {variable: value})


def test_every_setting_has_a_help_text():
    for field in dataclasses.fields(settings.Settings):
        assert field.metadata["help"].endswith("."), field.name


def test_unknown_variables_are_listed():
    environment = {"LATENTD_PRT": "1", "LATENTD_PORT": "2", "LATENTD_SERVER": "", "PATH": ""}
    assert settings.unknown_env_vars(environment) == ["LATENTD_PRT"]
