"""The demo's server without a browser: endpoints, the MCP tool, limits, and that it asks nobody else for anything."""

import asyncio
import base64
import json
import shutil
import socket
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

import swinbert
from swinbert.captioning import load_captioner
from swinbert.cli import app

pytest.importorskip("gradio", reason="the extra `demo` is not installed")

import httpx
from gradio_client import Client, handle_file

from swinbert.captioning.demo.app import launch
from swinbert.captioning.demo.handlers import Handlers
from swinbert.captioning.demo.service import Demo, Limits

SAMPLE = Path(swinbert.bundled_model()).parent / "sample.mp4"


@pytest.fixture(scope="module")
def demo():
    """The demo, with its page at `demo.address`; `demo.looked_up` has all hosts whose address was asked for."""
    looked_up = set()
    look_up = socket.getaddrinfo
    with pytest.MonkeyPatch.context() as patch, Demo(load_captioner("moving-shapes"), Limits(megabytes=2)) as running:
        patch.setattr(
            socket, "getaddrinfo", lambda host, *rest, **more: looked_up.add(host) or look_up(host, *rest, **more)
        )
        served = launch(running)
        running.address, running.looked_up = served.local_url, looked_up
        yield running
        served.close()


@pytest.fixture
def client(demo):
    client = Client(demo.address, verbose=False)
    yield client
    client.close()


def test_named_endpoints(client):
    endpoints = client.view_api(return_format="dict", print_info=False)["named_endpoints"]
    assert endpoints.keys() == {"/caption", "/explain"}
    (row,) = client.predict(video=handle_file(SAMPLE), alternatives=1, api_name="/caption")
    assert "red cross" in row["caption"] and row["score"] < 0 and row["duration"] == 2.0
    assert len(row["alternatives"]) == 1
    rows = client.predict(video=handle_file(SAMPLE), segments="0.5", alternatives=0, api_name="/caption")
    assert [(row["start"], row["end"]) for row in rows] == [(0, 0.5), (0.5, 1), (1, 1.5), (1.5, 2)]
    explanation = client.predict(video=handle_file(SAMPLE), caption="a red cross", api_name="/explain")
    assert [each["word"] for each in explanation["words"]] == ["a", "red", "cross"]
    assert len(explanation["times"]) == len(explanation["words"][0]["frames"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"video": handle_file(__file__)}, "test_demo_app.py: expected a video file, found "),
        ({"url": "http://127.0.0.1:9/clip.mp4"}, "http://127.0.0.1:9/clip.mp4: expected a public address"),
        ({"video": handle_file(SAMPLE), "segments": "often"}, 'Segments are seconds or "scenes"'),
        ({}, "Expected a video, or its address as `url`; found neither."),
    ],
    ids=["no video", "private address", "no segments", "nothing"],
)
def test_errors_are_one_sentence(client, capfd, arguments, message):
    with pytest.raises(Exception, match="expected|Expected|Segments") as raised:
        client.predict(**arguments, api_name="/caption")
    assert str(raised.value).startswith(message) and "\n" not in str(raised.value)
    assert "Traceback" not in capfd.readouterr().err


def test_what_a_client_sent_is_removed_when_it_leaves(demo):
    handlers, visitor = Handlers(demo), SimpleNamespace(session_hash="a client")
    sent = demo.files.uploads / "1" / "clip.mp4"
    sent.parent.mkdir(parents=True)
    shutil.copy(SAMPLE, sent)
    assert handlers.caption(visitor, str(sent))[0]["caption"]
    handlers.left(visitor)
    assert not sent.exists()


def test_too_large_a_file_is_refused_while_it_arrives(demo):
    before = set(demo.files.root.rglob("*"))
    files = {"files": ("large.mp4", bytes(3_000_000), "video/mp4")}
    answer = httpx.post(f"{demo.address}gradio_api/upload", files=files)
    assert answer.status_code == 413
    assert set(demo.files.root.rglob("*")) <= before


def test_a_browser_that_is_closed_in_the_middle_of_an_upload(demo, monkeypatch, capfd):
    part = b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.mp4"\r\n\r\n' + bytes(100_000)
    head = b"POST /gradio_api/upload HTTP/1.1\r\nHost: x\r\nContent-Length: 900000\r\n"
    address = (str(httpx.URL(demo.address).host), httpx.URL(demo.address).port)
    with socket.create_connection(address) as connection:
        connection.sendall(head + b"Content-Type: multipart/form-data; boundary=x\r\n\r\n" + part)
        while not (unfinished := [file for file in demo.files.uploads.iterdir() if file.is_file()]):
            time.sleep(0.05)
    monkeypatch.setattr("swinbert.captioning.demo.service._STALLED", 0.3)
    demo.files.sweep()
    time.sleep(0.5)
    demo.files.sweep()
    assert not any(file.exists() for file in unfinished)
    assert "Traceback" not in capfd.readouterr().err


def test_other_files_of_the_server_are_out_of_reach(demo):
    path = str(SAMPLE.with_name("moving-shapes") / "README.md")
    assert httpx.get(f"{demo.address}gradio_api/file={path}").status_code == 403
    data = [{"path": path, "meta": {"_type": "gradio.FileData"}}, "", "auto", 4, 2]
    event = httpx.post(f"{demo.address}gradio_api/call/caption", json={"data": data}).json()["event_id"]
    answer = httpx.get(f"{demo.address}gradio_api/call/caption/{event}", timeout=30).text
    assert answer.startswith("event: error") and "README.md" not in answer


def test_mcp_tool(demo):
    from mcp import ClientSession
    from mcp.client.streamable_http import streamablehttp_client

    async def ask():
        async with (
            streamablehttp_client(f"{demo.address}gradio_api/mcp/") as (read, write, _),
            ClientSession(read, write) as session,
        ):
            await session.initialize()
            tools = (await session.list_tools()).tools
            refused = await session.call_tool("caption", {"url": "http://127.0.0.1:9/clip.mp4"})
            sent = "data:video/mp4;base64," + base64.b64encode(SAMPLE.read_bytes()).decode()
            answered = await session.call_tool("caption", {"video": sent})
            return tools, refused, answered

    elsewhere = Path(tempfile.gettempdir(), "gradio")
    before = set(elsewhere.rglob("*"))
    tools, refused, answered = asyncio.run(ask())
    assert "red cross" in answered.content[0].text
    assert set(elsewhere.rglob("*")) <= before, "it is where it will be removed"
    assert {"caption", "explain"} <= {tool.name for tool in tools}
    (tool,) = [tool for tool in tools if tool.name == "caption"]
    assert "English" in tool.description and {"video", "url", "beams"} <= tool.inputSchema["properties"].keys()
    assert "required" not in tool.inputSchema or not tool.inputSchema["required"]
    assert refused.isError and "expected a public address" in refused.content[0].text
    assert "Traceback" not in refused.content[0].text


def test_nothing_is_asked_of_others(demo):
    page = httpx.get(demo.address)
    policy = page.headers["content-security-policy"]
    assert policy.startswith("default-src 'self'") and "http" not in policy
    config = json.loads(httpx.get(f"{demo.address}config").text)
    assert not config["analytics_enabled"] and not config.get("run_history")
    assert demo.looked_up <= {"127.0.0.1", "localhost", "0.0.0.0", "::1", None}


def test_port_in_use():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = CliRunner().invoke(app, ["demo", "--model", "moving-shapes", "--port", str(port)])
    assert done.exit_code == 1 and f"Port {port} is in use" in done.stderr and "Traceback" not in done.stderr


def test_model_that_does_not_exist():
    done = CliRunner().invoke(app, ["demo", "--model", "./nowhere"])
    assert done.exit_code == 1 and done.stderr.startswith("swinbert: ./nowhere: there is no such folder")
