"""What is sent to an endpoint, how it is opened, and which arguments are refused."""

from __future__ import annotations

import json

import pytest

pytest.importorskip("aiohttp")

from foveate.audit.http_target import HttpTarget
from foveate.audit.records import Item, Picture
from foveate.core.errors import InputError, SettingError
from tests.support.planted import PlantedServer
from tests.support.planted_http import asked
from tests.support.planted_target import planted_items

ITEMS = planted_items(40)


def test_the_request_holds_pictures_question_and_fields() -> None:
    picture = Picture(b"\x89PNG\xff\x00", "image/png")
    item = Item("i", (picture, picture), 'say "hé"\n\\', ("x",), "exact", "c", 7)
    target = HttpTarget("a", "http://host/v1/", "m", extra_body={"top_k": 1, "temperature": None})
    body = json.loads(target.body(item))
    assert target.body(item) == target.body(item)
    (message,) = body.pop("messages")
    assert body == {
        "model": "m",
        "max_tokens": 7,
        "top_k": 1,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    url = {"url": "data:image/png;base64,iVBOR/8A"}
    assert message == {
        "role": "user",
        "content": [
            {"type": "image_url", "image_url": url},
            {"type": "image_url", "image_url": url},
            {"type": "text", "text": 'say "hé"\n\\'},
        ],
    }


def test_temperature_is_zero_unless_said_otherwise() -> None:
    body = json.loads(HttpTarget("a", "http://host/v1", "m").body(ITEMS[0]))
    assert body["temperature"] == 0 and body["max_tokens"] == 16


def test_the_pictures_kept_encoded_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("foveate.audit.http_request.PICTURE_CACHE_BYTES", 1000)
    target = HttpTarget("a", "http://host/v1", "m")
    first = [target.body(i) for i in ITEMS]
    kept = target._bodies
    assert 0 < kept.kept_bytes <= 1000
    assert sum(map(len, kept._parts.values())) == kept.kept_bytes
    assert [target.body(i) for i in ITEMS] == first


def test_the_key_comes_from_the_environment_and_is_written_nowhere(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PLANTED_KEY", "s3cret-key")
    with PlantedServer(api_key="s3cret-key") as server:
        target = HttpTarget("a", server.url, api_key_env="PLANTED_KEY")
        (seen,) = asked(target, ITEMS[:1])
        assert server.seen()["authorization"] == "Bearer s3cret-key"
    assert seen.error is None and "s3cret-key" not in repr(target.describe())
    assert target.describe()["api_key_env"] == "PLANTED_KEY"


def test_a_refused_key_is_not_repeated_though_the_server_does(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PLANTED_KEY", "wr0ng-key")
    with PlantedServer(api_key="other") as server:
        target = HttpTarget("a", server.url, "planted", api_key_env="PLANTED_KEY")
        with pytest.raises(InputError, match="refuses the key in PLANTED_KEY") as caught:
            asked(target, ITEMS[:1])
        assert "wr0ng-key" not in str(caught.value)
        with pytest.raises(InputError, match="asking without a key"):
            asked(HttpTarget("a", server.url, "planted"), ITEMS[:1])


def test_a_key_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PLANTED_KEY", raising=False)
    with pytest.raises(InputError, match="PLANTED_KEY holds no key"):
        HttpTarget("a", "http://host/v1", api_key_env="PLANTED_KEY")


def test_nothing_at_the_url() -> None:
    with PlantedServer() as server:
        url = server.url
    with pytest.raises(InputError, match="nothing usable answers at"):
        asked(HttpTarget("a", url), ITEMS[:1])


@pytest.mark.parametrize(
    "url",
    ["", "localhost:8000/v1", "ftp://host/v1", "http:///v1", "http://u:p@host/v1",
     "http://host/v1?key=1", "http://host:port/v1", "u:p@host/v1"],
)  # fmt: skip
def test_bad_urls_are_refused_without_repeating_a_secret(url: str) -> None:
    with pytest.raises(InputError) as caught:
        HttpTarget("a", url)
    assert "u:p" not in str(caught.value) and "key=1" not in str(caught.value)


@pytest.mark.parametrize("field", ["messages", "stream", "stream_options"])
def test_fields_that_the_generator_sets_cannot_be_overruled(field: str) -> None:
    with pytest.raises(SettingError, match=field):
        HttpTarget("a", "http://host/v1", extra_body={field: None})


def test_fields_must_be_json() -> None:
    with pytest.raises(SettingError, match="JSON"):
        HttpTarget("a", "http://host/v1", extra_body={"seed": object()})


def test_a_time_limit_must_be_above_zero() -> None:
    with pytest.raises(SettingError, match="timeout_s"):
        HttpTarget("a", "http://host/v1", timeout_s=0)


@pytest.mark.parametrize(
    ("models", "says"),
    [(["m1", "m2"], "m1, m2"), ([], "status 200, no models"), (None, "status 404, no models")],
)
def test_a_model_must_be_named_unless_there_is_one(models: list[str] | None, says: str) -> None:
    with PlantedServer(listed=models) as server:
        with pytest.raises(InputError, match=f"name the model.*{says}"):
            asked(HttpTarget("a", server.url), ITEMS[:1])
        (seen,) = asked(HttpTarget("a", server.url, "planted"), ITEMS[:1])
    assert seen.error is None
