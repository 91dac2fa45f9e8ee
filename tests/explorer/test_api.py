"""The HTTP API: answers are those of the explorer, mistakes are sentences, nothing is written, no stranger may ask."""

import base64
import io
import json
import os
import threading

import numpy as np
import pytest
from PIL import Image

from brainjanus.core.errors import UserError
from brainjanus.core.progress import progress
from brainjanus.explorer.session import Shown

testing = pytest.importorskip("starlette.testclient")
api = pytest.importorskip("brainjanus.explorer.api")


def unpacked(text, kind="<f4"):
    return np.frombuffer(base64.b64decode(text), kind)


def result_of(client, path, **asked):
    started = client.post(path, json=asked)
    assert started.status_code == 202, started.text
    job = client.get(f"/api/jobs/{started.json()['id']}?wait=30").json()
    assert job["state"] == "done", job
    return job["result"]


def refused(answer, status, part):
    assert answer.status_code == status, answer.text
    assert part in answer.json()["detail"]


def picture_bytes(form="PNG", size=(40, 30), colour=(220, 30, 30), **options):
    file = io.BytesIO()
    Image.new("RGB", size, colour).save(file, form, **options)
    return file.getvalue()


def test_the_run_and_its_stimuli(client, explorer):
    assert client.get("/api/about").json() == json.loads(json.dumps(explorer.about()))
    found = client.get("/api/stimuli", params={"query": "red left", "most": 1}).json()
    assert found["total"] == 2 and len(found["stimuli"]) == 1
    stimulus = found["stimuli"][0]["id"]
    assert client.get("/api/stimuli", params={"id": stimulus}).json()["stimuli"] == found["stimuli"]
    shown = Image.open(io.BytesIO(client.get(f"/api/stimuli/{stimulus}/picture.png").content))
    np.testing.assert_array_equal(np.asarray(shown), explorer.picture(stimulus))
    values = client.get("/api/measured/s1", params={"stimulus": stimulus, "repeat": 1}).json()["values"]
    np.testing.assert_array_equal(unpacked(values), explorer.measured("s1", stimulus, 1))
    space = client.get("/api/spaces/s2").json()
    assert (space["sites"], space["geometry"]) == (28, "none")
    assert unpacked(space["rois"]["V1"], "<i4").tolist() == list(range(10))
    assert client.get("/api/scores").json() == explorer.scores()


def test_encode(client, explorer):
    made = result_of(client, "/api/encode", shown={"text": "red left"}, against={"text": "blue right"}, subjects=["s2"])
    wanted = explorer.encode(Shown(text="red left"), ["s2"], against=Shown(text="blue right"))["s2"].values
    np.testing.assert_array_equal(unpacked(made["s2"]["values"]), wanted.astype("<f4"))
    assert made["s2"]["spread"] is None
    spread = result_of(client, "/api/encode", shown={"text": "red left"}, subjects=["s1"], samples=4)["s1"]["spread"]
    assert unpacked(spread).shape == (40,)


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP"])
def test_a_picture_of_the_user(client, explorer, form):
    answer = client.post("/api/pictures", content=picture_bytes(form, quality=95))
    assert answer.status_code == 201 and answer.json()["size"] == 16
    identity = answer.json()["id"]
    seen = np.asarray(Image.open(io.BytesIO(client.get(f"/api/pictures/{identity}").content)))
    assert seen.shape == (16, 16, 3) and np.abs(seen.astype(int) - (220, 30, 30)).max() < 12
    made = result_of(client, "/api/encode", shown={"picture": identity}, subjects=["s1"])
    np.testing.assert_array_equal(
        unpacked(made["s1"]["values"]), explorer.encode(Shown(picture=seen), ["s1"])["s1"].values
    )


def test_decode_and_tokens(client, explorer):
    stimulus = explorer.stimulus_ids[0]
    made = result_of(client, "/api/decode", subject="s1", stimulus=stimulus, samples=1, hidden=["V1"], ranked=False)
    wanted = explorer.decode("s1", stimulus, samples=1, hidden=["V1"], ranked=False)
    assert made["captions"] == wanted.captions
    shown = Image.open(io.BytesIO(base64.b64decode(made["pictures"][1])))
    np.testing.assert_array_equal(np.asarray(shown), wanted.pictures[1])
    made = result_of(client, "/api/tokens", subject="s1", stimulus=stimulus, masked=[0])
    wanted = explorer.tokens("s1", stimulus, masked=[0])
    assert made["codes"] == wanted.codes.tolist()
    np.testing.assert_array_equal(unpacked(made["after"]["measured"]), wanted.after.measured)


def test_maps_are_downloaded_in_the_forms_that_there_are(client, explorer):
    started = client.post("/api/accuracy", json={"subject": "s1"}).json()
    client.get(f"/api/jobs/{started['id']}?wait=30")
    place = f"/api/jobs/{started['id']}/maps"
    values = np.load(io.BytesIO(client.get(f"{place}/s1.npy").content))
    np.testing.assert_allclose(values, explorer.accuracy("s1", "image->brain"), atol=1e-6)
    drawn = client.get(f"{place}/s1.png")
    assert drawn.headers["content-type"] == "image/png" and Image.open(io.BytesIO(drawn.content)).width > 100
    refused(client.get(f"{place}/s1.nii.gz"), 400, "expected a volume")
    refused(client.get(f"{place}/s1.L.func.gii"), 400, "expected a surface")
    refused(client.get(f"{place}/s1.exe"), 404, "expected png, npy")
    refused(client.get(f"{place}/s9.png"), 404, "expected one of s1")
    decoding = client.post("/api/decode", json={"subject": "s1", "stimulus": explorer.stimulus_ids[0]}).json()
    client.get(f"/api/jobs/{decoding['id']}?wait=30")
    refused(client.get(f"/api/jobs/{decoding['id']}/maps/s1.png"), 409, "got decode (done)")


def test_a_job_is_cancelled(client):
    gate = threading.Event()

    def work():
        with progress("waiting", 2) as advance:
            gate.wait(10)
            advance(1, None)

    job = client.app.state.jobs.submit("other", "slow", work)
    assert client.get(f"/api/jobs/{job.id}?wait=0.05").json()["state"] in ("waiting", "running")
    client.delete(f"/api/jobs/{job.id}")
    gate.set()
    assert client.get(f"/api/jobs/{job.id}?wait=10").json()["state"] == "cancelled"
    refused(client.get("/api/jobs/nothing"), 404, "expected one that is known")


def test_a_mistake_that_shows_late_is_the_job_s(client):
    started = client.post("/api/encode", json={"shown": {"text": "red"}, "subjects": ["s9"]}).json()
    job = client.get(f"/api/jobs/{started['id']}?wait=30").json()
    assert job["state"] == "failed" and job["problem"].startswith("subject: expected one of s1, s2, got 's9'")


@pytest.mark.parametrize(
    ("path", "asked", "status", "part"),
    [
        ("/api/encode", {"shown": {"text": "x" * 1001}}, 422, "body.shown.text: String should have at most 1000"),
        ("/api/encode", {"shown": {"text": "a"}, "colour": 1}, 422, "body.colour: Extra inputs are not permitted"),
        ("/api/encode", {"shown": {"text": "a"}, "samples": 10**9}, 422, "body.samples"),
        ("/api/encode", {"shown": {"picture": "../../etc/passwd"}}, 400, "expected one that was uploaded"),
        ("/api/encode", {"shown": {"picture": "a", "stimulus": "b"}}, 400, "got both"),
        ("/api/decode", {"subject": "s1"}, 422, "body.stimulus: Field required"),
        ("/api/decode", {"subject": "s1", "stimulus": "a", "guidance": "much"}, 422, "body.guidance"),
        ("/api/accuracy", {"subject": "s1", "direction": "brain->text"}, 422, "body.direction"),
        ("/api/nothing", {}, 404, "POST /api/nothing: expected a path of /api/schema"),
        ("/api/about", {}, 405, "POST /api/about: expected a method of /api/schema"),
    ],
)
def test_what_is_wrong_is_a_sentence(client, path, asked, status, part):
    refused(client.post(path, json=asked), status, part)


@pytest.mark.parametrize(
    ("data", "status", "part"),
    [
        (b"", 400, "expected the bytes of a PNG, JPEG or WebP file"),
        (b"GIF89a" + b"\0" * 100, 400, "expected the bytes of a PNG, JPEG or WebP file"),
        (b"RIFF1234AVI " + b"\0" * 100, 400, "expected the bytes of a PNG, JPEG or WebP file"),
        (picture_bytes()[:60], 400, "picture: expected"),
        (picture_bytes(size=(6000, 5000)), 400, "expected at most 25,000,000 pixels, got 6000 x 5000"),
        (b"\x89PNG\r\n\x1a\n" + b"\0" * (9 << 20), 413, "expected at most 8 MB"),
    ],
)
def test_pictures_that_are_none_are_refused(client, data, status, part):
    refused(client.post("/api/pictures", content=data), status, part)


def test_what_looks_like_one_format_is_read_as_no_other(client):
    """Pillow would try all that it knows."""
    photo_cd = b"\xff\xd8\xff" + bytes(2045) + b"PCD_" + bytes(200_000)
    refused(client.post("/api/pictures", content=photo_cd), 400, "picture: expected")


def test_a_photo_stands_upright(client):
    """As its EXIF says that it was taken."""
    stored = Image.new("RGB", (40, 40), (0, 0, 255))
    stored.paste((255, 0, 0), (0, 0, 40, 20))  # red above
    exif, file = Image.Exif(), io.BytesIO()
    exif[0x0112] = 6  # to be turned clockwise: red on the right
    stored.save(file, "JPEG", quality=95, exif=exif)
    identity = client.post("/api/pictures", content=file.getvalue()).json()["id"]
    seen = np.asarray(Image.open(io.BytesIO(client.get(f"/api/pictures/{identity}").content))).astype(int)
    assert seen[:, 12:, 0].min() > 180 and seen[:, :4, 2].min() > 180


def test_what_is_no_json_or_too_long_is_refused(client):
    for body in (b"{", b"\xff\xfe", b'{"shown": {"text": NaN}}'):
        answer = client.post("/api/encode", content=body, headers={"Content-Type": "application/json"})
        assert answer.status_code in (400, 422) and len(answer.json()["detail"]) > 20
    refused(client.post("/api/encode", content=b" " * (2 << 20)), 413, "body: expected at most 1 MB")


def test_our_own_mistakes_are_a_sentence_too(explorer, monkeypatch):
    app = api.make_app(explorer)
    monkeypatch.setattr(explorer, "find", lambda *_: 1 / 0)
    with testing.TestClient(app, base_url="http://127.0.0.1", raise_server_exceptions=False) as client:
        refused(client.get("/api/stimuli"), 500, "ZeroDivisionError: our mistake")


@pytest.mark.parametrize("token", ["", "two words", "ü", "x" * 201])
def test_a_token_that_could_not_be_brought_is_refused(explorer, token):
    with pytest.raises(UserError, match="--token: expected letters"):
        api.make_app(explorer, token=token)


def test_the_last_pictures_are_kept(client, monkeypatch):
    monkeypatch.setattr(api, "MOST_UPLOADS", 2)
    names = [client.post("/api/pictures", content=picture_bytes()).json()["id"] for _ in range(3)]
    refused(client.get(f"/api/pictures/{names[0]}"), 400, "Upload it again")
    assert client.get(f"/api/pictures/{names[2]}").status_code == 200


def test_nothing_is_written(client, explorer, tmp_path, monkeypatch):
    """Neither beside the run, nor where it was started, nor under a name that a client gave."""
    monkeypatch.chdir(tmp_path)
    before = {path: path.stat().st_mtime_ns for path in explorer.asked.path.rglob("*")}
    client.post("/api/pictures", content=picture_bytes(), headers={"Content-Disposition": 'filename="../x.png"'})
    result_of(client, "/api/encode", shown={"text": "red left"})
    assert os.listdir(tmp_path) == []
    assert {path: path.stat().st_mtime_ns for path in explorer.asked.path.rglob("*")} == before


def test_other_sites_cannot_ask(client):
    """A page of another site cannot send our header, and a name that leads here by its own DNS is refused."""
    answer = client.post("/api/encode", json={"shown": {"text": "red"}}, headers={"X-Client": ""})
    assert answer.status_code == 422
    for host in ("evil.example:8000", "127.0.0.1.evil.example", "[", ""):
        refused(client.get("/api/about", headers={"Host": host}), 403, "host: expected 127.0.0.1")
    for host in ("LOCALHOST:8000", "[::1]", "[::1]:8000", "127.0.0.1"):
        assert client.get("/api/about", headers={"Host": host}).status_code == 200
    answer = client.get("/api/about", headers={"Origin": "https://evil.example"})
    assert "access-control-allow-origin" not in answer.headers
    assert "default-src 'self'" in answer.headers["content-security-policy"]


def test_a_token_is_asked_for(explorer):
    app = api.make_app(explorer, token="secret")
    with testing.TestClient(app, base_url="http://lab.example") as client:
        refused(client.get("/api/about"), 401, "token: expected that which `brainjanus explore` printed")
        refused(client.get("/", headers={"Authorization": "Bearer wrong"}), 401, "token")
        assert client.get("/api/about", headers={"Authorization": "Bearer secret"}).status_code == 200
        assert client.get("/?token=secret").status_code == 200
        assert client.get("/api/about").status_code == 200, "the page's own requests bring it as a cookie"


def test_files_of_the_page_alone_are_served(client):
    for file in ("..%2Fapi.py", "%2Fetc%2Fpasswd", "api.py"):
        assert client.get(f"/static/{file}").status_code == 404


def test_the_schema_says_what_is_expected(client):
    schema = client.get("/api/schema").json()
    assert {"/api/about", "/api/encode", "/api/decode", "/api/tokens", "/api/jobs/{identity}"} <= set(schema["paths"])
    for path, methods in schema["paths"].items():
        for method, facts in methods.items():
            assert facts.get("description"), f"{method} {path} says nothing"


def test_the_schema_describes_answers_and_mistakes(client):
    schema = client.get("/api/schema").json()
    told = schema["paths"]["/api/encode"]["post"]["responses"]
    assert told["202"]["content"]["application/json"]["schema"]["$ref"].endswith("/JobOut")
    for status in ("400", "401", "403", "404", "413", "422", "429"):
        assert told[status]["content"]["application/json"]["schema"]["$ref"].endswith("/Problem")
    assert "image/png" in schema["paths"]["/api/pictures"]["post"]["requestBody"]["content"]
    assert "HTTPBearer" in schema["components"]["securitySchemes"]


def test_answers_are_as_the_schema_says(client, explorer):
    from brainjanus.explorer.api import JobOut

    stimulus = explorer.stimulus_ids[0]
    asked = {
        "/api/encode": {"shown": {"text": "red left"}, "samples": 2},
        "/api/decode": {"subject": "s1", "stimulus": stimulus},
        "/api/tokens": {"subject": "s1", "stimulus": stimulus, "masked": [0]},
        "/api/accuracy": {"subject": "s1"},
    }
    for path, body in asked.items():
        job = client.post(path, json=body).json()
        JobOut.model_validate(job, strict=True)
        done = client.get(f"/api/jobs/{job['id']}?wait=30").json()
        assert done["state"] == "done" and JobOut.model_validate(done).result is not None


def test_a_picture_with_transparent_parts_is_laid_on_white(client, explorer):
    file = io.BytesIO()
    Image.new("RGBA", (20, 20), (255, 0, 0, 0)).save(file, "PNG")
    name = client.post("/api/pictures", content=file.getvalue()).json()["id"]
    seen = Image.open(io.BytesIO(client.get(f"/api/pictures/{name}").content))
    assert seen.getextrema() == ((255, 255),) * 3


def test_the_head_of_the_page_and_a_path_with_a_slash(client):
    assert client.head("/").status_code == 200
    assert client.get("/api/about/", follow_redirects=False).status_code == 404


def test_tokens_of_two_explorers_on_one_host_are_kept_apart(explorer):
    from starlette.testclient import TestClient

    from brainjanus.explorer.api import make_app

    jars = []
    for port in (8001, 8002):
        with TestClient(make_app(explorer, token=f"t{port}"), base_url=f"http://127.0.0.1:{port}") as one:
            jars += one.get(f"/?token=t{port}").cookies.keys()
    assert jars == ["brainjanus-8001", "brainjanus-8002"]
