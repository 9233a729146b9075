"""The pages of customers and of agents, in a browser: a conversation goes to a person and back."""

import asyncio
import uuid
from collections.abc import Iterator
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect

from support_rag.local.servers import Running
from support_rag.service.app import create_app
from support_rag.service.passwords import hash_new_password
from support_rag.state.database import create_database
from support_rag.state.store import create_tenant, create_user
from tests.browser import chromium, is_expected
from tests.people import hashing_models, hashing_release, settings_of
from tests.service.test_conversations import store_article
from tests.serving import serving

pytestmark = pytest.mark.usefixtures("no_work_left")
PASSWORD = "correct horse battery"
QUESTION = "How long does the kiosk keep punches while it is offline?"
HOSTILE = (
    "This is terrible!! <img src=//evil.example/x onerror='window.hit=1'>"
    "<script>window.hit=1</script> [a](javascript:window.hit=1) <svg onload='window.hit=1'>"
)


async def store_people(servers: Running, embedders: Any) -> dict[str, str]:
    "Return name → e-mail address of a new tenant's people."
    tenant_id, database = str(uuid.uuid4()), create_database(servers.app_url)
    roles = {"Ada": "agent", "Bob": "agent", "Cleo": "member"}
    known = {name: f"{name}-{tenant_id}@example.com".lower() for name in roles}
    async with database.tenant(tenant_id) as session:
        await create_tenant(session, tenant_id=tenant_id, name="Tempolane")
        for name, role in roles.items():
            who: dict[str, Any] = {"email": known[name], "name": name, "role": role}
            hashed = hash_new_password(PASSWORD, name)
            await create_user(session, tenant_id=tenant_id, **who, password_hash=hashed)
    await database.close()
    await store_article(servers.app_url, tenant_id, hashing_release(), embedders)
    return known


@pytest.fixture(scope="module")
def site(servers: Running) -> Iterator[tuple[str, dict[str, str]]]:
    "The address of a service, and the people of a tenant."
    models = hashing_models()
    known = asyncio.run(store_people(servers, models["embedders"]))
    with serving(create_app(settings_of(servers), **models)) as url:
        yield url, known


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser | None]:
    if not is_expected():
        yield None
        return
    with chromium() as one:
        yield one


def elsewhere(page: Page, origin: str, address: str) -> None:
    "Note an address that a page loads from elsewhere."
    if not address.startswith((origin, "data:")):
        page.faults.append(address)  # type: ignore[attr-defined]


def enter(browser: Browser, url: str, email: str, *, width: int = 1440) -> Page:
    "Sign in at a page; note what it loads from elsewhere and what goes wrong in it."
    page = browser.new_context(viewport={"width": width, "height": 844}).new_page()
    page.faults = []  # type: ignore[attr-defined]
    origin = url.rpartition("/")[0]
    page.on("pageerror", lambda error: page.faults.append(str(error)))  # type: ignore[attr-defined]
    page.on("request", lambda sent: elsewhere(page, origin, sent.url))
    page.goto(url)
    page.fill("[name=email]", email)
    page.fill("[name=password]", PASSWORD)
    page.click("#sign-in button")
    expect(page.locator("#top")).to_be_visible(timeout=30_000)
    return page


def is_narrow_enough(page: Page) -> bool:
    return bool(page.evaluate("document.documentElement.scrollWidth <= window.innerWidth"))


def check_quiet(*pages: Page) -> None:
    "Hold that nothing ran, nothing failed and nothing was loaded from elsewhere."
    for page in pages:
        assert page.faults == [] and page.evaluate("window.hit") is None  # type: ignore[attr-defined]


@pytest.mark.parametrize("width", [1440, 390])
def test_a_customer_and_an_agent_meet(
    site: tuple[str, dict[str, str]], browser: Browser | None, width: int
) -> None:
    if browser is None:
        return
    url, known = site
    cleo = enter(browser, f"{url}/chat", known["Cleo"], width=width)
    cleo.fill("#said", QUESTION)
    cleo.click("#ask button")
    expect(cleo.get_by_text("72 hours").first).to_be_visible(timeout=30_000)
    cleo.click("text=Not helpful")
    cleo.select_option("[aria-label='Why not?']", "incomplete")
    expect(cleo.get_by_text("Not helpful").first).to_have_attribute("aria-pressed", "true")
    cleo.fill("#said", HOSTILE)
    cleo.click("#ask button")
    cleo.click("#person")
    expect(cleo.locator("#status")).to_contain_text("A person from support")

    ada = enter(browser, f"{url}/desk", known["Ada"], width=width)
    ada.click(".entry >> nth=0")
    expect(ada.locator("#messages").get_by_text("window.hit=1")).to_be_visible()
    ada.click("#take")
    ada.fill("#noted", "She is angry.")
    ada.click("#note button")
    expect(ada.locator(".note")).to_contain_text("She is angry.")
    ada.fill("#said", "I am sorry. <b>Which</b> kiosk?")
    ada.click("#reply button")
    expect(ada.locator(".message").last).to_contain_text("<b>Which</b>")
    assert is_narrow_enough(ada) and is_narrow_enough(cleo)

    expect(cleo.get_by_text("Ada answers you")).to_be_visible(timeout=10_000)
    expect(cleo.locator(".message").last).to_contain_text("<b>Which</b> kiosk?")
    assert "She is angry." not in cleo.content()
    cleo.fill("#said", "The old one")
    cleo.click("#ask button")
    expect(ada.locator(".message").last).to_contain_text("The old one", timeout=10_000)
    ada.click("#resolve")
    expect(ada.locator("#state")).to_contain_text("resolved")
    cleo.click("#rating button[value='4']", timeout=10_000)
    expect(cleo.locator("#rating button[value='4']")).to_have_class("pressed")
    expect(ada.locator("#state")).to_contain_text("rated 4 of 5", timeout=10_000)
    check_quiet(cleo, ada)


def test_two_agents_see_who_was_faster_and_give_to_each_other(
    site: tuple[str, dict[str, str]], browser: Browser | None
) -> None:
    if browser is None:
        return
    url, known = site
    cleo = enter(browser, f"{url}/chat", known["Cleo"])
    cleo.click("#person")
    expect(cleo.locator("#status")).to_contain_text("A person from support")
    ada, bob = (enter(browser, f"{url}/desk", known[name]) for name in ("Ada", "Bob"))
    for page in (ada, bob):
        page.click(".entry >> nth=0")
        expect(page.locator("#take")).to_be_visible()
    ada.click("#take")
    expect(ada.locator("#state")).to_contain_text("You have it")
    bob.evaluate("document.getElementById('take').click()")  # his page may have looked meanwhile
    expect(bob.locator("#status")).to_contain_text("Ada has this conversation")
    ada.select_option("#assign", label="Bob")
    expect(ada.locator("#state")).to_contain_text("Bob has it")
    expect(bob.locator("#reply")).to_be_visible(timeout=10_000)
    bob.click("#return")
    expect(bob.locator("#state")).to_contain_text("The bot answers")
    ada.reload()
    expect(ada.locator("#who")).to_contain_text("Ada", timeout=10_000)
    check_quiet(ada, bob)


def test_a_member_is_told_that_the_desk_is_not_for_members(
    site: tuple[str, dict[str, str]], browser: Browser | None
) -> None:
    if browser is None:
        return
    url, known = site
    page = enter(browser, f"{url}/desk", known["Cleo"])
    expect(page.locator("#status")).to_contain_text("ask an admin")
    assert not page.is_visible("#desk")
