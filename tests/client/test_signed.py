"""A sign-in is kept, renewed once for many commands, and forgotten when it is over."""

import stat
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from support_rag.client.api import Client
from support_rag.client.signed import (
    Kept,
    SignIn,
    folder_of,
    load_sign_in,
    save_sign_in,
    signed_in,
)
from support_rag.client.transport import Refused
from support_rag.local.servers import Running
from support_rag.types import Unauthorized
from tests.people import hashing_app
from tests.serving import serving

ASK = (
    "import sys, pathlib; from support_rag.client.api import Client;"
    "from support_rag.client.signed import Kept;"
    "client = Client(sys.argv[1], credentials=Kept(pathlib.Path(sys.argv[2])));"
    "print(client.get_me().user.email)"
)


@pytest.fixture(scope="module")
def url(servers: Running) -> Iterator[str]:
    with serving(hashing_app(servers)) as address:
        yield address


@pytest.fixture
def ada(url: str, tmp_path: Path) -> SignIn:
    "Somebody whose access token has expired."
    email = f"{uuid.uuid4().hex}@example.com"
    with Client(url) as nobody:
        made = nobody.register_tenant(tenant_name="T", email=email, password="a long enough phrase")
    kept = SignIn(url=url, email=email, access_token="old", refresh_token=made.refresh_token)
    save_sign_in(tmp_path, kept)
    return kept


def test_eight_commands_at_once_renew_once(ada: SignIn, tmp_path: Path) -> None:
    command = [sys.executable, "-c", ASK, ada.url, str(tmp_path)]
    many = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(8)]
    assert {one.communicate(timeout=120)[0].strip() for one in many} == {ada.email}
    kept = load_sign_in(tmp_path)
    assert kept.refresh_token != ada.refresh_token
    with Client(ada.url, credentials=Kept(tmp_path)) as client:
        assert client.get_me().user.email == ada.email, "the session goes on"


def test_the_file_is_its_owners_alone(ada: SignIn, tmp_path: Path) -> None:
    path = tmp_path / "signed_in.json"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with Client(ada.url, credentials=Kept(tmp_path)) as client:
        client.get_me()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600, "a renewed one too"


def test_a_session_that_is_over_is_forgotten(ada: SignIn, tmp_path: Path) -> None:
    with Client(ada.url, credentials=Kept(tmp_path)) as client:
        client.sign_out_user()
        with pytest.raises(Refused) as refused:
            client.get_me()
    assert refused.value.status == 401
    with pytest.raises(Unauthorized, match="support-rag login"):
        load_sign_in(tmp_path)


def test_a_file_that_cannot_be_read_is_none(tmp_path: Path) -> None:
    (tmp_path / "signed_in.json").write_text('{"url": 7}')
    with pytest.raises(Unauthorized):
        load_sign_in(tmp_path)


def test_where_the_file_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ada: SignIn, url: str
) -> None:
    monkeypatch.chdir(tmp_path)
    config = {"XDG_CONFIG_HOME": str(tmp_path / "config")}
    assert folder_of(config) == tmp_path / "config/support-rag"
    assert folder_of({}) == Path.home() / ".config/support-rag"
    (tmp_path / ".support_rag").mkdir()
    assert folder_of(config) == Path(".support_rag")
    assert folder_of(config | {"SUPPORT_RAG_HOME": "/srv"}) == Path("/srv")
    with Client(url) as client:
        tokens = client.refresh_session(refresh_token=ada.refresh_token)
    assert signed_in(url, ada.email, tokens).refresh_token == tokens.refresh_token
