"""The explorer as it is served, and asked from Python over loopback."""

import signal
import socket
import subprocess
import sys
import threading

import numpy as np
import pytest
from PIL import Image

import brainjanus as bj
from brainjanus.core.errors import UserError
from brainjanus.explorer.session import Shown

pytest.importorskip("uvicorn")
serving = pytest.importorskip("brainjanus.explorer.serve")


@pytest.fixture(scope="module")
def address(tiny_run):
    """Where an explorer of the tiny run answers, with a token."""
    import uvicorn

    found, told = [], threading.Event()
    servers = []
    started = uvicorn.Server.run

    def run(self, sockets=None):
        servers.append(self)
        started(self, sockets)

    def ready(address):
        found.append(address)
        told.set()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(uvicorn.Server, "run", run)
        options = {"port": 0, "token": "secret", "ready": ready}
        thread = threading.Thread(target=serving.serve, args=(tiny_run,), kwargs=options, daemon=True)
        thread.start()
        assert told.wait(60)
        yield found[0]
        servers[0].should_exit = True
        thread.join(20)
        assert not thread.is_alive()


@pytest.fixture(scope="module")
def lab(address):
    return bj.connect(address.partition("?")[0], token="secret")


def test_the_address_has_the_token(address):
    assert address.startswith("http://127.0.0.1:") and address.endswith("/?token=secret")
    with pytest.raises(UserError, match="token: expected that which `brainjanus explore` printed"):
        bj.connect(address.partition("?")[0])


def test_the_printed_address_is_enough(address):
    assert bj.connect(address).about()["dataset"] == "study"


@pytest.mark.parametrize("url", ["ftp://here", "http://here:abc", "http://", "here"])
def test_what_is_no_address_is_a_sentence(url):
    with pytest.raises(UserError, match="explorer: expected an address as"):
        bj.connect(url)


def test_a_contrast_with_a_sentence(lab):
    short, long = (lab.encode(text="red left", against=less) for less in ("blue right", {"text": "blue right"}))
    np.testing.assert_array_equal(short["s1"].values, long["s1"].values)


def test_answers_are_those_of_the_explorer(lab, explorer):
    assert lab.about()["subjects"][1]["name"] == "s2"
    stimulus = lab.stimuli("red left", most=1)[0]["id"]
    made, wanted = lab.encode(text="red left", samples=2), explorer.encode(Shown(text="red left"), samples=2)
    for subject in ("s1", "s2"):
        np.testing.assert_allclose(made[subject].values, wanted[subject].values, atol=1e-6)
        np.testing.assert_allclose(made[subject].spread, wanted[subject].spread, atol=1e-6)
    found, wanted = lab.decode("s1", stimulus, samples=1), explorer.decode("s1", stimulus, samples=1)
    assert (found.captions, found.ranks, found.candidates) == (wanted.captions, wanted.ranks, 16)
    np.testing.assert_array_equal(found.pictures, wanted.pictures)
    tokens = lab.tokens("s1", stimulus, swapped={0: 1}, masked=[1])
    wanted = explorer.tokens("s1", stimulus, swapped={0: 1}, masked=[1])
    np.testing.assert_array_equal(tokens.codes, wanted.codes)
    np.testing.assert_array_equal(tokens.patch, wanted.patch)
    np.testing.assert_array_equal(tokens.after.measured, wanted.after.measured)
    np.testing.assert_allclose(lab.accuracy("s2"), explorer.accuracy("s2", "image->brain"), atol=1e-6)
    assert lab.scores() == explorer.scores()


def test_a_picture_is_a_file_or_its_bytes(lab, explorer, tmp_path):
    stimulus = explorer.stimulus_ids[0]
    Image.fromarray(explorer.picture(stimulus)).save(tmp_path / "own.png")
    wanted = lab.encode(stimulus=stimulus, subjects=["s1"])["s1"].values
    for picture in (tmp_path / "own.png", (tmp_path / "own.png").read_bytes()):
        np.testing.assert_allclose(lab.encode(picture=picture, subjects=["s1"])["s1"].values, wanted, atol=1e-6)
    contrast = lab.encode(picture=tmp_path / "own.png", against={"stimulus": stimulus}, subjects=["s1"])
    np.testing.assert_allclose(contrast["s1"].values, 0, atol=1e-6)


def test_refusals_are_their_sentences(lab):
    with pytest.raises(UserError, match="subject: expected one of s1, s2, got 's9'"):
        lab.encode(text="red", subjects=["s9"])
    with pytest.raises(UserError, match=r"body\.samples"):
        lab.decode("s1", "s064", samples=99)


def test_mistakes_before_anything_is_asked(lab, tmp_path):
    with pytest.raises(UserError, match=r"none\.png: expected a file that can be read, got 'No such file"):
        lab.encode(picture=tmp_path / "none.png")
    with pytest.raises(UserError, match="against: expected text, picture or stimulus, got 'sentence'"):
        lab.encode(text="red left", against={"sentence": "blue right"})


def test_nobody_there_is_a_sentence():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(UserError, match="expected one that answers at"):
        bj.connect(f"http://127.0.0.1:{port}")
    with pytest.raises(UserError, match="expected an address as http"):
        bj.connect("file:///etc/passwd")


def test_a_port_that_is_taken_is_a_sentence(tiny_run):
    free = "expected a port of this machine that is free"
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(UserError, match=free):
        serving.serve(tiny_run, port=taken.getsockname()[1])
    with pytest.raises(UserError, match=free):
        serving.serve(tiny_run, host="no.such.host.invalid", port=0)


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_is_how_it_ends(tiny_run, end):
    command = [sys.executable, "-m", "brainjanus", "explore", tiny_run, "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        address = process.stdout.readline().strip()
        assert bj.connect(address.rstrip("/")).about()["stimuli"] == 16
        process.send_signal(end)
        out, err = process.communicate(timeout=30)
    assert (process.returncode, out, err) == (0, "", "")


def test_without_fastapi_the_extra_is_named(tiny_run, monkeypatch):
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    with pytest.raises(UserError, match=r"pip install 'brainjanus\[explore\]'"):
        serving.serve(tiny_run)
