"""The end of a client's connection on its node, where that cannot even begin."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import make_mocked_request

from multiraft.client.serving import ClientServer
from multiraft.config import Limits


async def test_who_has_gone_before_the_answer_leaves_nothing_to_be_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    """The web server ends what it is given; a WebSocket that was never prepared it cannot."""

    async def gone(ws: web.WebSocketResponse, request: web.BaseRequest) -> None:
        raise ConnectionResetError

    monkeypatch.setattr(web.WebSocketResponse, "prepare", gone)
    node: Any = SimpleNamespace(limits=Limits(), on_call=lambda name, answer: None)
    request = make_mocked_request("GET", "/client", headers={"Upgrade": "websocket"})
    answer = await ClientServer(node).serve(request)
    assert not isinstance(answer, web.WebSocketResponse)
    assert answer.status == 200
