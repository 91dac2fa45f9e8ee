"""The explorer under load: how soon it shows something, eight users at once, and a thousand malformed requests.

It serves a run (--run; without it, a small one is made in --work) in a process of its own and asks it over loopback.
- First view: Chromium opens the page; seconds until pictures of stimuli are there and the measured map is drawn; then
  seconds from the Enter key behind a sentence to its map (median of five sentences). Left out without Chromium.
- Users: eight, for a minute, each asks for maps of sentences, decoded responses, tokens, searches and pictures, in an
  order of its own. Every answer is compared with that which the same request got alone, before; the server's resident
  memory is read every second, and its last quarter held against its second.
- Malformed: requests made out of the API's own schema, each with at least one thing wrong, and uploads that are no
  pictures. Each has to be answered with 4xx and a sentence, and the run's folder, the working folder and the temporary
  folder have to hold afterwards what they held before.
python benchmarks/explorer.py --run runs/demo/run --out benchmarks/results/explorer.json [--quick]
"""

import json
import os
import random
import shutil
import socket
import string
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections import Counter
from pathlib import Path

import numpy as np
from records import Claim, arguments, write

USERS, SECONDS, MALFORMED = 8, 60, 1000
SENTENCES = [
    "a face",
    "a house",
    "a dog on the beach",
    "two red cups",
    "a boat at night",
    "a big clock",
    "snow",
    "a chair",
]


class Server:
    """`brainjanus explore` in a process of its own."""

    def __init__(self, run: Path, folder: Path):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.address = f"http://127.0.0.1:{self.port}"
        command = [sys.executable, "-m", "brainjanus", "explore", str(run.resolve()), "--port", str(self.port)]
        self.folder = folder
        self.temporary = folder / "temporary"
        self.temporary.mkdir(parents=True)
        self.log = (folder / "server.log").open("wb")
        self.process = subprocess.Popen(
            command,
            cwd=folder,
            env=os.environ | {"TMPDIR": str(self.temporary)},
            stdout=subprocess.PIPE,
            stderr=self.log,
        )
        assert self.process.stdout is not None
        assert self.process.stdout.readline(), "the explorer did not start"

    def resident_mb(self) -> float:
        for line in Path(f"/proc/{self.process.pid}/status").read_text().splitlines():
            if line.startswith("VmRSS"):
                return int(line.split()[1]) / 1024
        raise OSError("no VmRSS")

    def ask(self, method: str, path: str, body: object = None, owner: str = "one") -> tuple[int, bytes]:
        raw = isinstance(body, bytes)
        data = None if body is None else body if raw else json.dumps(body).encode()
        headers = {"X-Client": owner} | ({} if raw or data is None else {"Content-Type": "application/json"})
        request = urllib.request.Request(self.address + path, data, headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=120) as answer:
                return answer.status, answer.read()
        except urllib.error.HTTPError as error:
            return error.code, error.read()

    def work(self, path: str, body: object, owner: str) -> dict:
        """The result of a job."""
        status, told = self.ask("POST", path, body, owner)
        job = json.loads(told)
        assert status == 202, job
        while job["state"] in ("waiting", "running"):
            job = json.loads(self.ask("GET", f"/api/jobs/{job['id']}?wait=20", None, owner)[1])
        assert job["state"] == "done", job
        return job["result"]

    def close(self) -> None:
        self.process.terminate()
        self.process.wait(30)
        self.log.close()


def requests_of(server: Server) -> list[tuple[str, str, object]]:
    """What users ask: (kind, path, body)."""
    about = json.loads(server.ask("GET", "/api/about")[1])
    subjects = [one["name"] for one in about["subjects"]]
    found = json.loads(server.ask("GET", "/api/stimuli?most=8")[1])["stimuli"]
    asked: list[tuple[str, str, object]] = []
    for number, sentence in enumerate(SENTENCES):
        asked.append(
            ("job", "/api/encode", {"shown": {"text": sentence}, "subjects": [subjects[number % len(subjects)]]})
        )
        asked.append(("get", f"/api/stimuli?{urllib.parse.urlencode({'query': sentence.split()[-1]})}", None))
    for number, one in enumerate(found):
        seen = {"subject": next(iter(one["repeats"])), "stimulus": one["id"]}
        asked.append(("job", "/api/decode", seen | {"samples": number % 2, "seed": number}))
        asked.append(("job", "/api/tokens", seen | {"masked": [number]}))
        asked.append(("get", f"/api/stimuli/{urllib.parse.quote(one['id'])}/picture.png?small=true", None))
    return asked


def answer(server: Server, asked: tuple[str, str, object], owner: str) -> bytes:
    kind, path, body = asked
    if kind == "job":
        return json.dumps(server.work(path, body, owner), sort_keys=True).encode()
    status, told = server.ask("GET", path, None, owner)
    assert status == 200, told
    return told


def alike(one: bytes, other: bytes) -> bool:
    """The same, but for the last bits of log p, which depend on what else the processor does."""
    if one == other:
        return True
    if one[:1] != b"{" or other[:1] != b"{":
        return False
    return close(json.loads(one), json.loads(other))


def close(one: object, other: object) -> bool:
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(close(one[name], other[name]) for name in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(close, one, other))
    if isinstance(one, float) and isinstance(other, float):
        return abs(one - other) <= 1e-3 * max(1.0, abs(one))
    return one == other


def users(server: Server, seconds: float) -> list[Claim]:
    asked = requests_of(server)
    wanted = [answer(server, one, "alone") for one in asked]
    wrong, errors, counts, waited = Counter(), Counter(), Counter(), []
    over = time.monotonic() + seconds

    def user(number: int) -> None:
        rng = random.Random(number)
        while time.monotonic() < over:
            which = rng.randrange(len(asked))
            start = time.monotonic()
            try:
                told = answer(server, asked[which], f"user-{number}")
            except Exception as error:
                errors[f"{type(error).__name__}: {error}"[:200]] += 1
                continue
            waited.append(time.monotonic() - start)
            counts[number] += 1
            if not alike(told, wanted[which]):
                wrong[asked[which][1]] += 1

    threads = [threading.Thread(target=user, args=(number,)) for number in range(USERS)]
    for thread in threads:
        thread.start()
    memory = []
    while time.monotonic() < over:
        memory.append(server.resident_mb())
        time.sleep(min(1.0, seconds / 40))
    for thread in threads:
        thread.join()
    for text, count in (*errors.items(), *wrong.items()):
        print(f"{count} x {text}")
    quarter = len(memory) // 4
    before, after = np.median(memory[quarter : 2 * quarter]), np.median(memory[-quarter:])
    return [
        Claim("requests answered to eight users at once", sum(counts.values()), ""),
        Claim("requests answered to the user who got least", min(counts[n] for n in range(USERS)), "", bar=1),
        Claim("errors", sum(errors.values()), "", bar=0, at_most=True),
        Claim("wrong answers", sum(wrong.values()), "", bar=0, at_most=True),
        Claim("waiting for an answer, median", float(np.median(waited)), "s"),
        Claim("waiting for an answer, 95th percentile", float(np.quantile(waited, 0.95)), "s"),
        Claim("resident memory, last quarter", float(after), "MB", "second quarter", float(before), 1.05, at_most=True),
    ]  # fmt: skip


# --- malformed


def malformed(server: Server, count: int, seed: int, run: Path) -> list[Claim]:
    """Each request has one thing wrong at least."""
    schema = json.loads(server.ask("GET", "/api/schema")[1])
    held = contents(run.resolve().parent, server.folder)
    rng = random.Random(seed)
    statuses: Counter[int] = Counter()
    silent = 0
    for _ in range(count):
        method, path, body = spoiled(schema, rng)
        status, told = server.ask(method, path, body, "fuzz")
        statuses[status] += 1
        try:
            sentence = json.loads(told)["detail"]
        except (ValueError, KeyError, TypeError):
            sentence = ""
        if not 400 <= status < 500 or not isinstance(sentence, str) or len(sentence.split()) < 4:
            silent += 1
            print(f"{status} to {method} {path[:100]} {str(body)[:100]}: {told[:120]!r}")
    print(dict(statuses))
    server.ask("GET", "/api/about")
    changed = contents(run.resolve().parent, server.folder).items() ^ held.items()
    for path, _ in sorted(changed)[:10]:
        print(f"changed: {path}")
    return [
        Claim("malformed requests and uploads", count, ""),
        Claim("answered with 5xx", sum(n for status, n in statuses.items() if status >= 500), "", bar=0, at_most=True),
        Claim("not answered with 4xx and a sentence", silent, "", bar=0, at_most=True),
        Claim("files written by them", len({path for path, _ in changed}), "", bar=0, at_most=True),
    ]


def contents(*folders: Path) -> dict[str, tuple[int, int]]:
    """Path -> size and time of all files in folders, but for what Python compiles and the server's own log."""
    files = (path for folder in folders for path in folder.rglob("*") if path.is_file())
    return {
        str(path): (path.stat().st_size, path.stat().st_mtime_ns)
        for path in files
        if path.name != "server.log" and "__pycache__" not in path.parts
    }


def spoiled(schema: dict, rng: random.Random) -> tuple[str, str, object]:
    """A request of the schema with something wrong in it."""
    if rng.random() < 0.25:
        return "POST", "/api/pictures", spoiled_picture(rng)
    operations = [
        (method.upper(), path, one)
        for path, methods in schema["paths"].items()
        for method, one in methods.items()
        if path != "/api/pictures" and (one.get("parameters") or "requestBody" in one)
    ]
    method, path, one = rng.choice(operations)
    if "requestBody" in one:
        content = one["requestBody"]["content"]["application/json"]["schema"]
        return method, path, spoiled_body(schema, content, rng)
    inside = [p["name"] for p in one["parameters"] if p["in"] == "path"]
    for name in inside:
        path = path.replace("{" + name + "}", urllib.parse.quote(nonsense(rng), safe="") or "x")
    query = {p["name"]: unfit(p["schema"], rng) for p in one["parameters"] if p["in"] == "query"}
    return method, f"{path}?{urllib.parse.urlencode(query)}", None


def unfit(node: dict, rng: random.Random) -> str:
    """A value that a parameter cannot have."""
    node = node["anyOf"][0] if "anyOf" in node else node
    if node["type"] == "string":
        return "x" * (node["maxLength"] + rng.randint(1, 500))
    return rng.choice(["-1", "NaN", "9" * 30, "", "maybe", "1e400"])


def spoiled_body(schema: dict, content: dict, rng: random.Random) -> object:
    form = rng.random()
    if form < 0.1:
        return rng.choice([b"{", b"\xff\xfe", b"[1,", b"null", b"{}" * 3, b'{"a":' * 500])
    if form < 0.2:
        return rng.choice([[], 3, "text", None, {}, [[]]]) or []
    made = example(schema, content, rng)
    assert isinstance(made, dict)
    how = rng.random()
    if how < 0.3:
        made[nonsense(rng) or "x"] = wild(rng)  # an unknown key
    elif how < 0.9 and made:
        for name in rng.sample(sorted(made), k=rng.randint(1, len(made))):
            made[name] = wild(rng)
        made["unknown"] = 1
    else:
        made["subject"] = made["stimulus"] = nonsense(rng)
        made["unknown"] = None
    return made


def example(schema: dict, node: dict, rng: random.Random) -> object:
    if "$ref" in node:
        return example(schema, schema["components"]["schemas"][node["$ref"].rpartition("/")[2]], rng)
    if "anyOf" in node:
        return example(schema, rng.choice(node["anyOf"]), rng)
    kinds = {
        "object": lambda: {name: example(schema, inner, rng) for name, inner in node.get("properties", {}).items()},
        "array": lambda: [example(schema, node.get("items", {}), rng) for _ in range(rng.randint(0, 3))],
        "integer": lambda: rng.randint(-5, 5),
        "number": lambda: rng.uniform(-5, 5),
        "boolean": lambda: rng.random() < 0.5,
        "null": lambda: None,
    }
    return kinds.get(node.get("type", ""), lambda: nonsense(rng))()


def wild(rng: random.Random) -> object:
    return rng.choice(
        [
            None,
            -1,
            10**40,
            1e308,
            True,
            "",
            nonsense(rng),
            "../../etc/passwd",
            "\x00",
            [None],
            {"a": {"b": []}},
            [[[[]]]],
            "é" * 2000,
        ]
    )


def nonsense(rng: random.Random) -> str:
    return "".join(rng.choice(string.printable + "äß漢/..%00") for _ in range(rng.randint(1, 30)))


def spoiled_picture(rng: random.Random) -> bytes:
    """Bytes that are no picture, or one that is cut short, or claims to be huge."""
    import io
    import struct
    import zlib

    from PIL import Image

    if rng.random() < 0.3:
        return rng.randbytes(rng.randint(0, 3000))
    file = io.BytesIO()
    kind = rng.choice(["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"])
    Image.frombytes("RGB", (16, 16), rng.randbytes(768)).save(file, kind)
    data = bytearray(file.getvalue())
    if kind in ("GIF", "BMP", "TIFF"):
        return bytes(data)
    if rng.random() < 0.3:
        head = struct.pack(">II5B", 60_000, 60_000, 8, 2, 0, 0, 0)
        chunk = b"IHDR" + head
        return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk)) + b"\0" * 40
    return bytes(data[: rng.randint(1, min(60, len(data) // 4))])  # cut short before its pixels


# --- how soon


def views(server: Server) -> list[Claim]:
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if chromium is None:
        print("no Chromium: how soon the page shows something is left out")
        return []
    from playwright.sync_api import sync_playwright

    flags = ["--no-sandbox", "--disable-background-networking", "--use-gl=angle", "--use-angle=swiftshader"]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=[*flags, "--enable-unsafe-swiftshader"])
        pictures, maps, predicted = [], [], []
        for _ in range(3):
            page = browser.new_context(viewport={"width": 1280, "height": 900}).new_page()
            start = time.monotonic()
            page.goto(server.address)
            page.wait_for_selector("#thumbs button img")
            pictures.append(time.monotonic() - start)
            page.wait_for_selector('#cortex[data-shown*="measured response"]')
            maps.append(time.monotonic() - start)
        page.click("#tab-encode")
        page.wait_for_selector("#in-text")
        for sentence in SENTENCES[:5]:
            page.evaluate("delete document.getElementById('cortex').dataset.shown")
            page.fill("#in-text", sentence)
            start = time.monotonic()
            page.keyboard.press("Enter")
            page.wait_for_selector('#cortex[data-shown*="expected response"]')
            predicted.append(time.monotonic() - start)
        browser.close()
    return [
        Claim("first pictures of stimuli after opening", float(np.median(pictures)), "s", bar=2.0, at_most=True),
        Claim("first measured map after opening", float(np.median(maps)), "s", bar=2.0, at_most=True),
        Claim("a sentence's predicted map, all subjects", float(np.median(predicted)), "s", bar=3.0, at_most=True),
    ]


def small_run(folder: Path) -> Path:
    from brainjanus.demo import demo

    if not (folder / "scores.json").exists():
        demo(folder, quick=True)
    return folder / "run"


def main() -> None:
    asked = arguments(str(__doc__), run="the run that is explored")
    run = asked.run or small_run(asked.work / "explorer-demo")
    with tempfile.TemporaryDirectory() as folder:
        server = Server(run, Path(folder) / "server")
        try:
            claims = views(server)
            claims += users(server, 10 if asked.quick else SECONDS)
            claims += malformed(server, 100 if asked.quick else MALFORMED, asked.seed, run)
        finally:
            server.close()
        crashes = (Path(folder) / "server/server.log").read_text().count("Traceback")
        claims.append(Claim("tracebacks in the server's log", crashes, "", bar=0, at_most=True))
    write(claims, asked.out)


if __name__ == "__main__":
    main()
