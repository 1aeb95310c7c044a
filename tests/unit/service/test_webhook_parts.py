"""Signatures, waits, events and settings of webhooks: everything of them that needs no network."""

from __future__ import annotations

import asyncio
import base64
import json
import time
from datetime import UTC, datetime, timedelta, timezone
from email.utils import format_datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr
from standardwebhooks import Webhook, WebhookVerificationError

from service.errors import StartError
from service.jobs import JobState
from service.settings import Settings, load_settings
from service.telemetry import Telemetry
from service.webhooks.delivery import DeliveryResult, Webhooks
from service.webhooks.events import event_id, job_event
from service.webhooks.retries import (
    MAX_RETRY_AFTER_S,
    RetryPlan,
    is_retried,
    parse_retry_after,
)
from service.webhooks.sign import Signer

SECRET = "whsec_" + base64.b64encode(bytes(range(32))).decode()
OLD_SECRET = "whsec_" + base64.b64encode(bytes(range(32, 64))).decode()
NOW = datetime(2030, 1, 1, tzinfo=UTC)


@given(st.text(max_size=30), st.uuids())
def test_the_reference_implementation_accepts_a_signature(text: str, event: object) -> None:
    body = json.dumps({"text": text}).encode()
    headers = Signer([SECRET]).headers(str(event), int(time.time()), body)
    assert Webhook(SECRET).verify(body, headers) == {"text": text}


def test_the_scheme_s_own_example_is_signed_as_it_says() -> None:
    # Source: the example of the reference implementation's tests.
    signer = Signer(["whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"])
    headers = signer.headers("msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, b'{"test": 2432232314}')
    assert headers == {
        "webhook-id": "msg_p5jXN8AQM9LWM0D4loKWxJek",
        "webhook-timestamp": "1614265330",
        "webhook-signature": "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
    }


def test_while_secrets_are_changed_both_verify() -> None:
    headers = Signer([SECRET, OLD_SECRET]).headers("e", int(time.time()), b"{}")
    for secret in (SECRET, OLD_SECRET):
        Webhook(secret).verify(b"{}", headers)
    other = "whsec_" + base64.b64encode(b"o" * 32).decode()
    with pytest.raises(WebhookVerificationError):
        Webhook(other).verify(b"{}", headers)


@pytest.mark.parametrize("part", ["webhook-id", "webhook-timestamp"])
def test_the_signature_covers_id_and_time(part: str) -> None:
    headers = Signer([SECRET]).headers("e", int(time.time()), b"{}")
    with pytest.raises(WebhookVerificationError):
        Webhook(SECRET).verify(b"{}", headers | {part: str(int(time.time()) - 1)})


@pytest.mark.parametrize(
    "secret",
    [
        *("", "whsec_", "secret", base64.b64encode(bytes(32)).decode(), "whsec_!!!!" * 8),
        "whsec_" + base64.b64encode(bytes(23)).decode(),
        "whsec_" + base64.b64encode(bytes(65)).decode(),
    ],
)
def test_a_malformed_secret_stops_the_start_and_is_not_repeated(secret: str) -> None:
    settings = load_settings(webhooks=True, webhook_secrets=(SECRET, secret))
    with pytest.raises(StartError, match="ONESTEP_WEBHOOK_SECRETS") as caught:
        Webhooks.from_settings(settings, Telemetry())
    assert len(secret) < 10 or secret not in str(caught.value)


def test_webhooks_need_a_secret() -> None:
    with pytest.raises(StartError, match=r"ONESTEP_WEBHOOK_SECRETS.*at least one"):
        Webhooks.from_settings(load_settings(webhooks=True), Telemetry())


def test_a_malformed_host_stops_the_start() -> None:
    settings = load_settings(webhook_secrets=(SECRET,), webhook_hosts=("https://a.org",))
    with pytest.raises(StartError, match=r"ONESTEP_WEBHOOK_HOSTS.*'https://a.org'"):
        Webhooks.from_settings(settings, Telemetry())


def test_settings_are_lists_by_commas_and_secrets_are_hidden(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("ONESTEP_WEBHOOKS", "true")
    monkeypatch.setenv("ONESTEP_WEBHOOK_SECRETS", f"{SECRET}, {OLD_SECRET}")
    monkeypatch.setenv("ONESTEP_WEBHOOK_HOSTS", " a.org,b.org:9000=10.0.0.0/8 ,")
    settings = load_settings()
    assert settings.webhooks
    assert settings.webhook_secrets == (SecretStr(SECRET), SecretStr(OLD_SECRET))
    assert settings.webhook_hosts == ("a.org", "b.org:9000=10.0.0.0/8")
    assert SECRET not in repr(settings)
    guard = Webhooks.from_settings(settings, Telemetry()).guard
    assert guard.check("https://b.org:9000/").port == 9000


def test_webhooks_are_off_by_default() -> None:
    assert not Settings.model_fields["webhooks"].default
    assert not Settings.model_fields["webhook_allow_http"].default


@given(st.floats(0, 1, exclude_max=True), st.integers(1, 5))
def test_waits_grow_are_scattered_and_come_to_an_end(draw: float, num_tries: int) -> None:
    plan = RetryPlan(max_tries=6, draw=lambda: draw)
    wait_s = plan.wait_s(num_tries, None)
    assert wait_s is not None
    full_s = min(4.0 ** (num_tries - 1), 300)
    assert full_s / 2 <= wait_s <= full_s
    assert plan.wait_s(6, None) is None
    assert RetryPlan(20, draw=lambda: draw).wait_s(19, None) == 300 * (1 - draw / 2)


@pytest.mark.parametrize(
    ("asked_s", "wait_s"),
    [(None, 1), (-5, 1), (0.5, 1), (30, 30), (1e9, MAX_RETRY_AFTER_S)],
)
def test_a_receiver_may_ask_for_more_time_up_to_a_cap(asked_s: float | None, wait_s: float) -> None:
    assert RetryPlan(6, draw=lambda: 0.0).wait_s(1, asked_s) == wait_s


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        *(("120", 120), ("0", 0), ("9" * 10_000, 999_999_999_999), ("", None), ("soon", None)),
        *(("-1", None), ("1.5", None), ("\u0661", None), ("Mon, 99 Foo 2030", None)),
        (format_datetime(NOW + timedelta(seconds=90), usegmt=True), 90),
        (format_datetime(NOW - timedelta(seconds=90), usegmt=True), -90),
        (format_datetime(NOW.replace(tzinfo=None) + timedelta(seconds=9)), 9),
    ],
)
def test_retry_after_is_seconds_or_a_date(value: str, seconds: float | None) -> None:
    assert parse_retry_after(value, NOW) == seconds


def test_which_answers_are_tried_again() -> None:
    assert [code for code in range(300, 600) if is_retried(code)] == [408, 429, *range(500, 600)]


def test_an_event_has_the_form_of_the_scheme() -> None:
    ended_at = datetime(2030, 1, 1, 1, 2, 3, 4567, timezone(timedelta(hours=1)))
    assert job_event("j-0", JobState.SUCCEEDED, ended_at, {"seed": 7}) == {
        "type": "job.succeeded",
        "timestamp": "2030-01-01T00:02:03.004+00:00",
        "data": {"id": "j-0", "state": "succeeded", "seed": 7},
    }
    assert event_id("j-0", JobState.EXPIRED) == "j-0-expired"
    # The id stands between dots in what is signed.
    assert "." not in event_id("j-0", JobState.FAILED)


def test_there_is_no_event_of_a_job_that_goes_on() -> None:
    with pytest.raises(AssertionError):
        job_event("j-0", JobState.RUNNING, NOW, {})


async def test_a_url_that_has_become_forbidden_is_not_called() -> None:
    telemetry = Telemetry()
    settings = load_settings(webhooks=True, webhook_secrets=(SECRET,))
    webhooks = Webhooks.from_settings(settings, telemetry)
    async with asyncio.timeout(5):
        outcome = await webhooks.deliver("https://127.0.0.1/", "e", {})
    assert (outcome.result, outcome.num_tries) == (DeliveryResult.BLOCKED, 0)
    name = "onestep_webhooks_total"
    assert telemetry.registry.get_sample_value(name, {"result": "blocked"}) == 1
    assert telemetry.registry.get_sample_value(name, {"result": "delivered"}) == 0
