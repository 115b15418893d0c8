"""What a route does not take is refused by name."""

from typing import Literal

import pytest
from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from tinkex.errors import APIStatusError
from tinkex.server.openapi.describe import Query, described
from tinkex.server.openapi.strict import read_query, refuse_what_is_not_taken


class WallQuery(Query):
    size: int = 1
    colour: Literal["red", "blue"] = "red"


@described(query=WallQuery, response=dict)
async def wall(request):
    query = read_query(request, WallQuery)
    return JSONResponse({"size": query.size, "colour": query.colour})


@described(response=dict)
async def door(request):
    return JSONResponse({"body": (await request.body()).decode()})


@described(request=dict, response=dict)
async def window(request):
    return JSONResponse({"body": (await request.body()).decode()})


@pytest.fixture
def client():
    routes = [
        Route("/wall", wall),
        Route("/door", door, methods=["POST", "GET", "DELETE"]),
        Route("/window", window, methods=["POST"]),
    ]
    refuse_what_is_not_taken(routes)
    with TestClient(Starlette(routes=routes)) as client:
        yield client


def test_query_is_read_as_its_types(client):
    assert client.get("/wall").json() == {"size": 1, "colour": "red"}
    assert client.get("/wall?size=7&colour=blue").json() == {"size": 7, "colour": "blue"}


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ("shade=1", "'shade' is not known here"),
        ("size=x", "'size'.*integer"),
        ("size=", "'size'"),
        ("size=1&size=2", "'size' is given twice"),
        ("colour=green", "'colour'.*red"),
        ("%ff%fe=1", "not known here"),
    ],
)
def test_query_that_does_not_fit_is_refused_by_name(client, query, words):
    for method in ("GET", "HEAD"):
        with pytest.raises(APIStatusError, match=words) as caught:
            client.request(method, f"/wall?{query}")
        assert caught.value.status_code == 422


def test_route_without_a_query_takes_none(client):
    with pytest.raises(APIStatusError, match="'size' is not known here"):
        client.post("/door?size=1")


@pytest.mark.parametrize("body", [b"", b"{}", b" {} \n"])
def test_empty_body_passes_where_none_is_read(client, body):
    assert client.post("/door", content=body).status_code == 200
    assert client.request("DELETE", "/door", content=body).status_code == 200


@pytest.mark.parametrize("body", [b"{'a': 1}", b"[]", b"x"])
def test_body_is_refused_where_none_is_read(client, body):
    with pytest.raises(APIStatusError, match="takes no body") as caught:
        client.post("/door", content=body)
    assert caught.value.status_code == 422


def test_body_passes_unchanged_where_it_is_read(client):
    assert client.post("/window", content=b"[1]").json() == {"body": "[1]"}
