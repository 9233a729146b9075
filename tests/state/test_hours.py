"""Opening hours: what is promised is kept, whatever the clocks do."""

from datetime import UTC, date, datetime, time, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from support_rag.dialogue.replies import REPLIES
from support_rag.state.hours import CLOSED, DAYS, Hours, closed_notice, load_hours, opens_at, spoken

OFFICE = {"mon": [{"start": "09:00", "end": "17:00"}], "sat": [{"start": "00:00", "end": "24:00"}]}
MOMENTS = st.datetimes(datetime(2024, 1, 1), datetime(2030, 1, 1), timezones=st.just(UTC))
ZONES = ("UTC", "Europe/Berlin", "America/New_York", "Asia/Kolkata", "Pacific/Auckland")


def office(zone: str, **more: object) -> Hours:
    return Hours.model_validate({"time_zone": zone, "week": OFFICE, **more})


@given(moment=MOMENTS, zone=st.sampled_from(ZONES))
def test_what_is_promised_is_the_next_moment_at_which_somebody_is_there(
    moment: datetime, zone: str
) -> None:
    hours = office(zone)
    local = moment.astimezone(ZoneInfo(zone))
    day, clock = DAYS[local.weekday()], local.time()
    is_open = day == "sat" or (day == "mon" and time(9) <= clock < time(17))
    opening = opens_at(hours, moment)
    assert (opening is None) == is_open
    if opening is not None:
        assert moment < opening <= moment + timedelta(days=7)
        assert opens_at(hours, opening) is None, "somebody is there then"
        assert opens_at(hours, opening - timedelta(seconds=1)) == opening, "and not before"


@given(moment=MOMENTS, n=st.integers(0, 90))
def test_closed_days_are_never_promised(moment: datetime, n: int) -> None:
    first = moment.date() - timedelta(days=1)
    closed = [first + timedelta(days=k) for k in range(n)]
    opening = opens_at(office("Europe/Berlin", closed_on=closed), moment)
    if opening is not None:
        assert opening.astimezone(ZoneInfo("Europe/Berlin")).date() not in closed


def test_a_night_goes_over_midnight_as_two_spans() -> None:
    week = {
        "fri": [{"start": "22:00", "end": "24:00"}],
        "sat": [{"start": "00:00", "end": "02:00"}],
    }
    hours = Hours.model_validate({"time_zone": "UTC", "week": week})
    friday = datetime(2026, 12, 4, 21, tzinfo=UTC)
    assert opens_at(hours, friday) == friday + timedelta(hours=1)
    for hour in (1, 2.99, 3, 4.99):
        assert opens_at(hours, friday + timedelta(hours=hour)) is None
    assert opens_at(hours, friday + timedelta(hours=5)) == friday + timedelta(days=7, hours=1)


@pytest.mark.parametrize("language", sorted(REPLIES))
def test_each_language_has_a_text_and_writes_the_time_itself(language: str) -> None:
    monday = datetime(2026, 12, 7, 8, tzinfo=UTC)
    said = closed_notice(office("Europe/Berlin"), monday - timedelta(hours=20), language=language)
    assert spoken(monday, language=language, zone="Europe/Berlin") in said
    assert "{" not in said and "{until}" in CLOSED[language]


def test_a_text_of_the_tenant_is_used_as_it_is() -> None:
    text = "100 % {closed} {0} %s <b>{until}</b>"
    hours = office("UTC", closed_texts={"en": text})
    said = closed_notice(hours, datetime(2026, 12, 6, tzinfo=UTC), language="en")
    assert said.startswith("100 % {closed} {0} %s <b>Mon, Dec 7, 9:00")
    assert load_hours({"hours": hours.model_dump(mode="json")}) == hours


@pytest.mark.parametrize(
    "wrong",
    [
        {"time_zone": "Europe/Berlin; DROP"}, {"time_zone": "../etc/passwd"}, {"week": {}},
        {"week": {"mon": []}}, {"week": {"mon": [{"start": "9:00", "end": "17:00"}]}},
        {"week": {"mon": [{"start": "09:00", "end": "09:00"}]}}, {"closed_on": [0]},
        {"closed_on": [date(2026, 1, 1)] * 101}, {"closed_texts": {"xx": "?"}}, {"closed": True},
    ],
)  # fmt: skip
def test_what_cannot_be_kept_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        Hours.model_validate({"time_zone": "UTC", "week": OFFICE} | wrong)
