"""Settings come from the environment of a real process, and no secret leaves them."""

import os
import secrets
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import SecretStr

from support_rag.state.settings import (
    ServiceSettings,
    load_settings,
    save_service_file,
    settings_table,
    variable,
)
from support_rag.types import SettingsInvalid

CANARY = "canary-7Qx"
GOOD = {
    "environment": "production",
    "jwt_secret": secrets.token_urlsafe(48),
    "database_url": f"postgresql://app:{secrets.token_urlsafe(24)}@db/support_rag",
    "redis_url": f"redis://:{secrets.token_urlsafe(24)}@redis:6379/0",
}
SECRETS = [
    name for name, f in ServiceSettings.model_fields.items() if "Secret" in str(f.annotation)
]


def in_process(home: Path, code: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """Run code in a process that has these settings and no others."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("SUPPORT_RAG_", "OPENAI_"))}
    environ = {variable(name): value for name, value in environ.items()}
    return subprocess.run(
        [sys.executable, "-c", f"from support_rag.state.settings import load_settings\n{code}"],
        env=kept | {variable("home"): str(home)} | environ,
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip


def test_production_starts_with_real_secrets(tmp_path: Path) -> None:
    done = in_process(tmp_path, "s = load_settings(); print(s.environment, s)", **GOOD)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("production")
    for name in ("jwt_secret", "database_url", "redis_url"):
        assert GOOD[name] not in done.stdout


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("jwt_secret", ""),
        ("jwt_secret", f"{CANARY}-too-short"),
        ("jwt_secret", f"{CANARY}-change-me-change-me-change-me-now"),
        ("jwt_secret", "ab" * 32),
        ("database_url", ""),
        ("database_url", f"postgresql://app:{CANARY}@db/x"),
        ("database_url", "postgresql://app@db/x"),
        ("owner_database_url", f"postgresql://owner:{CANARY}@db/x"),
        ("superuser_url", f"postgresql://postgres:{CANARY}@db/x"),
        ("redis_url", f"redis://:{CANARY}@redis/0"),
        ("redis_url", "redis://redis/0"),
    ],
)
def test_production_refuses_and_does_not_repeat_the_secret(
    tmp_path: Path, name: str, value: str
) -> None:
    done = in_process(tmp_path, "load_settings()", **GOOD | {name: value})
    assert done.returncode != 0
    assert f"SettingsInvalid: the environment cannot be used: {variable(name)} " in done.stderr
    assert CANARY not in done.stdout + done.stderr
    assert in_process(tmp_path, "load_settings()", **{name: value}).returncode == 0, "development"


def test_a_secret_of_a_wrong_type_is_not_repeated(tmp_path: Path) -> None:
    for name in SECRETS:
        with pytest.raises(SettingsInvalid, match=variable(name)) as caught:
            load_settings(home=tmp_path, **{name: [CANARY]})
        assert CANARY not in f"{caught.value!r}{caught.value.__cause__!r}"
        assert caught.value.__suppress_context__


def test_a_misspelt_variable_is_refused_and_known_others_are_not(tmp_path: Path) -> None:
    done = in_process(tmp_path, "load_settings()", labelled="x", eval="reduced", app_password="x")
    assert done.returncode == 0, done.stderr
    done = in_process(tmp_path, "load_settings()", redis_ulr="x")
    assert "did you mean SUPPORT_RAG_REDIS_URL?" in done.stderr


def test_arguments_win_over_the_environment_and_that_over_the_file(tmp_path: Path) -> None:
    values = {"port": "9001", "pool_size": "7", "redis_url": "redis://:in 'quotes' and $x \\ #@h/0"}
    save_service_file(tmp_path, values)
    code = "s = load_settings(port=9003)\nprint(s.port, s.pool_size, s.workers)"
    assert in_process(tmp_path, code, port="9002", workers="2").stdout.split() == ["9003", "7", "2"]
    code = "print(load_settings().redis_url.get_secret_value())"
    assert in_process(tmp_path, code).stdout.strip() == values["redis_url"]


def test_only_the_owner_can_read_the_file(tmp_path: Path) -> None:
    for _ in range(2):
        path = save_service_file(tmp_path, {"jwt_secret": "x"})
        assert path.stat().st_mode & 0o777 == 0o600
        path.chmod(0o644)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_every_setting_is_in_the_table_with_its_meaning() -> None:
    table = settings_table()
    for name, field in ServiceSettings.model_fields.items():
        assert f"`{variable(name)}`" in table
        assert field.description and field.description in table
    assert isinstance(ServiceSettings().jwt_secret, SecretStr)
