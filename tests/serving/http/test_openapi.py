"""The list of routes, for programs and for people."""

from __future__ import annotations

import re

from starlette.routing import Route

from latentd.http import openapi
from tests.support.web import request


def test_every_route_is_listed_and_every_listed_route_is_there(server):
    app = server.server._http._config.app
    there = {
        (re.sub(r"/versions/\{version\}", "", route.path), verb.lower())
        for route in app.routes
        if isinstance(route, Route)
        for verb in route.methods - {"HEAD"}
    }
    listed = {(route.path, route.verb) for route in openapi.ROUTES}
    others = {("/", "get"), ("/explore", "get"), ("/explore/", "get")}
    assert there - others == listed


def test_the_document(server):
    answer = request(server, "/openapi.json")
    assert answer.json["openapi"] == "3.1.0"
    decode = answer.json["paths"]["/vae/{name}/decode"]["post"]
    assert {one["name"] for one in decode["parameters"]} >= {"name", "shape", "scaling_factor"}


def test_the_page_loads_nothing(server):
    answer = request(server, "/docs")
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert answer.headers["content-security-policy"].startswith("default-src 'none'")
    assert not re.search(rb"(?i)<script|<style|<link|src=|https?://", answer.body)
    first = request(server, "/")
    assert (first.status, first.headers["location"]) == (307, "docs")
