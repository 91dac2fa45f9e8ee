"""The page in Chromium: what it shows, from the keyboard too, on a telephone, in the dark; nothing else is asked.

It looks at a small run of its own on the simulated cortex. $BRAINJANUS_EXPLORE names another one, such as the demo's;
$BRAINJANUS_SCREENSHOTS a folder for pictures of each view. Skips where there is no Chromium.
"""

import base64
import io
import itertools
import json
import os
import re
import shutil
import threading
import time
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from brainjanus.core.progress import progress
from brainjanus.explorer import serve as serving
from brainjanus.explorer.session import Explorer

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = ["--no-sandbox", "--disable-background-networking", "--disable-component-update", "--no-first-run"]
WEBGL = ["--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"]  # in software
WIDE, NARROW = {"width": 1280, "height": 900}, {"width": 390, "height": 844}
PATIENCE_MS = 30_000

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: apt-get install chromium")


@pytest.fixture(scope="module")
def run(request) -> Path:
    named = os.environ.get("BRAINJANUS_EXPLORE")
    return Path(named) if named else request.getfixturevalue("cortex_run")


@pytest.fixture(scope="module")
def address(run) -> str:
    return served(run)


def served(run: Path) -> str:
    """The address of an explorer of a run, in this process."""
    told: list[str] = []
    ready = threading.Event()

    def heard(address: str) -> None:
        told.append(address)
        ready.set()

    threading.Thread(target=serving.serve, args=(run,), kwargs={"port": 0, "ready": heard}, daemon=True).start()
    assert ready.wait(120)
    return told[0]


@pytest.fixture(scope="module")
def chromium():
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=[*FLAGS, *WEBGL])
        yield browser
        browser.close()


@pytest.fixture
def visit(chromium, address, request):
    """A function that opens the page at a place as a user of their own. Whatever it logs as an error, and whatever it
    asks of others, fails the test; a refusal, which a browser logs as an error, needs the marker `refused`."""
    errors: list[str] = []
    asked: list[str] = []
    contexts = []

    def opened(place: str = "", *, at: str = address, init: str = "", **options):
        context = chromium.new_context(**{"viewport": WIDE, "accept_downloads": True, **options})
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(PATIENCE_MS)
        page.add_init_script(init)
        page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("request", lambda one: asked.append(one.url))
        page.goto(at + place)
        return page

    yield opened
    keep = os.environ.get("BRAINJANUS_SCREENSHOTS")
    for number, context in enumerate(contexts):
        if keep:
            Path(keep).mkdir(parents=True, exist_ok=True)
            context.pages[0].screenshot(path=Path(keep) / f"{request.node.name}-{number}.png", full_page=True)
        context.close()
    if not request.node.get_closest_marker("refused"):
        assert not errors
    others = [url for url in asked if not url.startswith(("http://127.0.0.1:", "data:", "blob:"))]
    assert not others


def shown(page, label: str, subject: str = "") -> None:
    """Wait until a map is drawn."""
    whose = f'[data-shown^="{subject} "]' if subject else ""
    page.wait_for_selector(f'#cortex[data-shown*="{label}"]{whose}')


def lit(page) -> float:
    """The share of the cortex that is coloured: red or blue, not grey."""
    taken = page.screenshot(clip=page.locator("#stage").bounding_box())
    pixels = np.asarray(Image.open(io.BytesIO(taken)).convert("RGB")).astype(int)
    return float((pixels.max(axis=2) - pixels.min(axis=2) > 40).mean())


def test_first_view(visit):
    """Stimuli, the measured map and what is decoded of it, without anything having been pressed."""
    page = visit()
    page.wait_for_selector("#thumbs button img")
    shown(page, "measured response")
    page.wait_for_selector(".pictures figure >> nth=1")
    assert "held-out stimuli" in page.inner_text("#about")
    assert lit(page) > 0.002


def test_decode(visit):
    page = visit()
    shown(page, "measured response")
    count = page.locator("#thumbs button").count()
    word = page.locator("#thumbs button").nth(1).get_attribute("title").split()[1]
    page.fill("#in-query", word)
    page.locator("#controls p.quiet", has_text=re.compile(r"^\d+ held-out")).wait_for()
    page.wait_for_timeout(600)
    titles = page.locator("#thumbs button").evaluate_all("all => all.map(one => one.title)")
    assert titles and len(titles) <= count
    page.locator("#thumbs button").last.click()
    page.wait_for_selector("#thumbs button[aria-pressed=true]")
    chosen = page.locator("#thumbs button[aria-pressed=true]").get_attribute("data-stimulus")
    assert f"stimulus={chosen}" in page.url
    page.wait_for_selector("#ranks td")
    assert re.search(r"rank \d+ of \d+", page.inner_text("#ranks")) and "log p -" in page.inner_text("#ranks")

    slide(page, "samples", 3)
    page.wait_for_selector(".pictures figure >> nth=4")  # seen, expected, three samples
    page.wait_for_selector('th:text("sample 3")')
    slide(page, "guidance", 2)
    slide(page, "temperature", 0.5)
    settled(page)
    assert "guidance=2" in page.url and "temperature=0.5" in page.url
    page.select_option("#in-repeat", "0")
    shown(page, "measured response")
    settled(page)

    before = lit(page)
    regions = page.locator("#rois button")
    names = regions.all_inner_texts()
    for name in names[:-1]:
        page.locator("#rois button", has_text=re.compile(f"^{re.escape(name)}$")).click()
    settled(page)
    assert page.locator("#rois button[aria-pressed=true]").count() == len(names) - 1
    assert "hidden=" in page.url and lit(page) < before

    page.select_option("#subject", index=1)
    subject = page.input_value("#subject")
    shown(page, "measured response", subject)
    assert "hidden=" not in page.url and f"subject={subject}" in page.url


def slide(page, name: str, value: float) -> None:
    field = page.locator(f"#in-{name}")
    field.evaluate("(one, value) => { one.value = value; }", value)
    for event in ("input", "change"):
        field.dispatch_event(event)


def settled(page) -> None:
    """Wait for the end of the job that runs."""
    page.wait_for_timeout(150)
    page.wait_for_selector("#job", state="hidden")


def test_encode(visit, tmp_path):
    import nibabel

    page = visit("#tab=encode")
    page.fill("#in-text", "a red bird on the left")
    page.keyboard.press("Enter")
    shown(page, "expected response")
    subject = page.input_value("#subject")
    regions = page.locator("#result table").first.inner_text()
    assert re.search(r"\w+\s+-?\d\.\d\d", regions)

    page.check("#in-spread")
    page.wait_for_selector('#result td:has-text("±")')
    page.click('button:text("Show its spread")')
    shown(page, "spread of single trials")
    page.fill("#in-against", "a house")
    page.click("#go")
    shown(page, "spread of single trials' contrast")
    page.click('button:text("Show the response")')
    page.uncheck("#in-spread")
    shown(page, "contrast (z): “a red bird on the left” minus “a house”")
    page.select_option("#subject", index=1)
    shown(page, "contrast", page.input_value("#subject"))
    page.select_option("#subject", subject)
    shown(page, "contrast", subject)

    for name, suffix in (("GIfTI left", "L.func.gii"), ("npy", "npy"), ("PNG", "png")):
        with page.expect_download() as waited:
            page.click(f'#downloads a:text-is("{name}")')
        waited.value.save_as(tmp_path / suffix)
    values = np.load(tmp_path / "npy")
    surface = nibabel.load(str(shutil.copy(tmp_path / "L.func.gii", tmp_path / "left.func.gii"))).darrays[0].data
    assert len(surface) == 10_242 and np.isin(surface[np.isfinite(surface)].round(4), values.round(4)).mean() > 0.99
    with Image.open(tmp_path / "png") as drawn:
        assert drawn.size[0] > 400

    box = page.locator("#cortex").bounding_box()
    for x in np.linspace(0.3, 0.7, 9):  # over the back of the brain
        page.mouse.move(box["x"] + box["width"] * x, box["y"] + box["height"] * 0.55)
        page.wait_for_timeout(120)
        told = page.inner_text("#hover")
        if re.fullmatch(r"site \d+, [\w, ]+: -?\d+\.\d\d", told.strip()):
            break
    else:
        pytest.fail(f"no site is named under the pointer: {told!r}")


def test_pictures_are_chosen_dropped_and_drawn(visit, tmp_path):
    page = visit("#tab=encode")
    page.click('summary:text-is("A picture")')
    Image.new("RGB", (300, 200), "orange").save(tmp_path / "mine.png")
    page.set_input_files("#in-file", tmp_path / "mine.png")
    shown(page, "expected response")
    first = page.locator("#drop img").get_attribute("src")

    page.click('summary:text-is("Draw one")')
    paper = page.locator("#draw").bounding_box()
    page.mouse.move(paper["x"] + 20, paper["y"] + 20)
    page.mouse.down()
    page.mouse.move(paper["x"] + 90, paper["y"] + 90, steps=4)
    page.mouse.up()
    page.click("#use-drawing")
    page.wait_for_selector(f'#drop img:not([src="{first}"])')
    second = page.locator("#drop img").get_attribute("src")
    settled(page)

    page.evaluate(
        """async () => {
            const paper = document.createElement("canvas");
            paper.getContext("2d").fillRect(0, 0, 300, 150);
            const blob = await new Promise((done) => paper.toBlob(done));
            const data = new DataTransfer();
            data.items.add(new File([blob], "dropped.png", { type: "image/png" }));
            const drop = new DragEvent("drop", { dataTransfer: data, cancelable: true });
            document.getElementById("drop").dispatchEvent(drop);
        }"""
    )
    page.wait_for_selector(f'#drop img:not([src="{second}"])')
    settled(page)
    page.click("#as-contrast")
    page.fill("#in-text", "a red bird")  # less that picture
    page.click("#go")
    shown(page, "“a red bird” minus a picture")
    assert "lessPicture=" in page.url
    page.locator("#less button").click()
    settled(page)
    page.set_input_files("#in-file", tmp_path / "mine.png")
    page.wait_for_selector("#drop img")
    page.fill("#in-text", "a red bird")  # and a picture with it
    page.click("#go")
    settled(page)
    assert "picture=" in page.url and "text=a+red+bird" in page.url
    page.click('button:text("Take it away")')
    settled(page)
    page.click('summary:text-is("Of the held-out stimuli")')
    page.locator("#thumbs button").nth(2).click()
    settled(page)
    assert "seen=" in page.url


@pytest.mark.refused
def test_what_is_no_picture_is_refused_with_a_sentence(visit, tmp_path):
    page = visit("#tab=encode")
    page.click('summary:text-is("A picture")')
    (tmp_path / "notes.png").write_text("no picture")
    page.set_input_files("#in-file", tmp_path / "notes.png")
    page.wait_for_selector("#problem:visible")
    assert "expected the bytes of a PNG, JPEG or WebP file" in page.inner_text("#problem")


def test_tokens(visit):
    page = visit("#tab=tokens")
    page.wait_for_selector("[data-token]")
    shown(page, "the token lit")
    assert re.search(r"this trial is \d+ tokens", page.inner_text("#whole"))
    assert page.locator("#words .word").count() > 1 and page.locator("#mosaic span").count() > 3
    token = page.locator("[data-token]").nth(1)
    token.hover()
    token.click()
    assert "token=1" in page.url
    code = page.locator("#in-code")
    other = (int(code.input_value()) + 7) % (int(code.get_attribute("max")) + 1)
    code.fill(str(other))
    page.click("#swap")
    page.wait_for_selector("#after")
    assert page.locator('[data-token="1"]').inner_text() == str(other)
    assert " → " in page.inner_text("#result")
    page.locator("[data-token]").nth(0).click()
    page.click("#mask")
    page.wait_for_selector('[data-token="0"].masked')
    assert "masked=0" in page.url and f"swapped=1%3A{other}" in page.url
    page.click('button:text("As measured")')
    settled(page)
    assert page.locator("#after").count() == 0


def test_scores(visit):
    page = visit("#tab=scores")
    shown(page, "voxel r")
    rows = page.locator("table.figures tbody tr")
    every = rows.count()
    page.select_option("#in-metric", "voxel_r")
    assert 0 < rows.count() < every
    told = page.inner_text("#beside")
    assert re.search(r"mean over sites -?\d.\d\d, floor -?\d.\d\d, .*linear -?\d.\d\d, ceiling \d", told), told
    page.select_option("#in-of", "image->brain")
    page.select_option("#in-whose", index=1)
    page.click('th button:text-is("value")')
    column = page.locator("table.figures thead th").all_inner_texts().index("value ↑")
    values = [float(text) for text in page.locator(f"table.figures tbody td:nth-child({column + 1})").all_inner_texts()]
    assert values == sorted(values) and len(values) > 1
    heads = page.locator("table.figures thead th")
    assert heads.all_inner_texts() == ["roi", "estimator", "value ↑", "floor", "baseline", "ceiling", "p", "n"]
    assert page.evaluate("(([box]) => box.scrollWidth <= box.clientWidth)(document.querySelectorAll('div.scroll'))")
    page.click('th button:text("value")')
    values = [float(text) for text in page.locator(f"table.figures tbody td:nth-child({column + 1})").all_inner_texts()]
    assert values == sorted(values, reverse=True)
    page.locator("#report").scroll_into_view_if_needed()
    report = page.frame_locator("#report")
    report.locator("h2").first.wait_for()
    assert report.locator("svg, img").count() > 3


def test_long_work_is_cancelled_and_blocks_nobody(visit, monkeypatch):
    entered, left = threading.Event(), threading.Event()

    def endless(self, *_, **__):
        with progress("maps", 1000) as advance:
            try:
                for step in range(1000):
                    advance(step, None)
                    entered.set()
                    time.sleep(0.05)
            finally:
                left.set()

    monkeypatch.setattr(Explorer, "encode", endless)
    page = visit("#tab=encode&text=a+face")
    page.wait_for_selector('#job span:text("maps")')
    assert entered.wait(30) and page.locator("#job progress").get_attribute("value") is not None
    other = visit()
    other.wait_for_selector("#ranks td")  # of a second user, meanwhile
    assert not left.is_set()
    page.click('#job button:text("Cancel")')
    page.wait_for_selector("#job", state="hidden")
    assert left.wait(30)


def test_what_was_cancelled_leaves_nothing_of_what_was_asked_before(visit, monkeypatch):
    page = visit("#tab=encode&text=a+house")
    shown(page, "expected response (z): “a house”")

    def endless(self, *_, **__):
        with progress("maps", 1000) as advance:
            for step in range(1000):
                advance(step, None)
                time.sleep(0.05)

    monkeypatch.setattr(Explorer, "encode", endless)
    page.fill("#in-text", "a dog")
    page.keyboard.press("Enter")
    page.click('#job button:text("Cancel")')
    page.wait_for_selector("text=Cancelled: there is no answer to show.")
    assert page.locator("#downloads a").count() == 0
    page.wait_for_selector("#cortex:not([data-shown])")


@pytest.mark.refused
def test_what_an_address_says_wrongly_can_be_left(visit):
    page = visit("#tab=tokens&swapped=abc,1:99999&masked=x")
    page.wait_for_selector("#problem:visible")
    page.click('button:text("As measured")')
    page.wait_for_selector("[data-token]")
    page.fill("#in-code", "")
    page.click("#swap")
    assert "code: expected a whole number from 0 to" in page.inner_text("#problem")
    assert "swapped" not in page.url
    page = visit("#hidden=NOWHERE&stimulus=nothing")
    page.wait_for_selector("#problem:visible")
    page.locator("#thumbs button").first.click()
    page.wait_for_selector("#ranks td")
    assert "NOWHERE" not in page.url


def test_the_way_back(visit):
    page = visit()
    page.wait_for_selector("#ranks td")
    page.locator("#thumbs button").nth(2).click()
    settled(page)
    page.click("#tab-scores")
    shown(page, "voxel r")
    page.go_back()
    page.wait_for_selector('#thumbs button:nth-child(3)[aria-pressed="true"]')
    page.go_back()
    page.wait_for_selector('#thumbs button:nth-child(1)[aria-pressed="true"]')


def test_the_address_is_the_view(visit):
    page = visit("#tab=encode&text=a+dog&against=a+house")
    shown(page, "contrast")
    page.click('#views button:text("below")')
    assert "view=below" in page.url
    page.select_option("#subject", index=1)
    shown(page, "contrast", page.input_value("#subject"))
    place = page.url.partition("#")[2]
    colleague = visit(f"#{place}")
    shown(colleague, "contrast", page.input_value("#subject"))
    assert colleague.locator('#views button:text("below")').get_attribute("aria-pressed") == "true"
    assert colleague.input_value("#in-text") == "a dog" and colleague.input_value("#in-against") == "a house"
    assert colleague.locator("#result").inner_text() == page.locator("#result").inner_text()


def test_from_the_keyboard_alone(visit):
    page = visit()
    shown(page, "measured response")
    settled(page)
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "tab-decode"
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    page.wait_for_selector("#in-text")
    for _ in range(12):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.id") == "in-text":
            break
    page.keyboard.type("a face")
    page.keyboard.press("Enter")
    shown(page, "expected response")
    page.focus("#cortex")
    before = page.screenshot(clip=page.locator("#stage").bounding_box())
    for key in ("ArrowLeft", "ArrowLeft", "ArrowUp", "h"):
        page.keyboard.press(key)
    page.wait_for_timeout(300)
    assert page.screenshot(clip=page.locator("#stage").bounding_box()) != before
    page.focus("#tab-decode")
    page.keyboard.press("Enter")
    page.wait_for_selector("#thumbs button")
    settled(page)
    page.locator("#thumbs button").first.focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    page.wait_for_selector('#thumbs button:nth-child(2)[aria-pressed="true"]')


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_on_a_telephone(visit, scheme):
    page = visit(viewport=NARROW, color_scheme=scheme, device_scale_factor=2)
    for tab in ("decode", "encode", "tokens", "scores"):
        page.click(f"#tab-{tab}")
        page.wait_for_selector(f'main[data-tab="{tab}"]')
        settled(page)
        assert page.evaluate("document.documentElement.scrollWidth") <= NARROW["width"]
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", background)[:3])) < 200) == (scheme == "dark")


@pytest.mark.refused
def test_without_webgl_the_rest_answers(visit):
    """Only the cortex is missing then, and a sentence says why."""
    page = visit("#tab=scores", init="HTMLCanvasElement.prototype.getContext = () => null")
    page.wait_for_selector("table.figures")
    page.wait_for_selector("#problem:visible")
    assert "no WebGL 2" in page.inner_text("#problem")


@pytest.fixture(scope="module")
def elsewhere(tiny_settings, tmp_path_factory):
    """The address of an explorer of a run without a surface: a volume, sensors over time, and neurons without a place.
    It was trained for two steps on noise, and there are no pictures."""
    from brainjanus.core.config import from_dict
    from brainjanus.core.space import BrainSpace
    from brainjanus.data.dataset import Stimuli, Subject, Trials
    from brainjanus.data.write import write_dataset
    from brainjanus.recipes import RunConfig
    from brainjanus.run import train

    rng = np.random.default_rng(0)
    inside = np.flatnonzero(np.linalg.norm(np.indices((9, 10, 8)).reshape(3, -1).T - [4, 5, 4], axis=1) < 3)
    where = np.stack(np.unravel_index(inside, (9, 10, 8)), axis=1)
    affine = np.diag([-3.0, 3, 3, 1])  # the first voxels lie at the right
    affine[:3, 3] = [12, -60, -10]
    volume = BrainSpace(
        "volume", len(inside), coordinates_mm=where @ affine[:3, :3] + affine[:3, 3], index=inside,
        rois={"V1": np.arange(len(inside)) < 30},
        geometry={"type": "volume", "shape": [9, 10, 8], "affine": affine.tolist()},
    )  # fmt: skip
    sensors = BrainSpace.of_sensors("sensors", ["Oz", "O1", "O2", "Pz"], np.arange(10) / 50)
    spaces = [volume, sensors, BrainSpace("neurons", 24, "neurons")]
    ids = [f"s{number:02}" for number in range(40)]
    once = np.zeros(40, np.int64)
    trials = Trials(ids, once, once, once, ["train" if number < 32 else "test" for number in range(40)])
    subjects = [Subject(space, rng.normal(size=(40, space.num_sites)).astype(np.float32), trials) for space in spaces]
    captions = {
        name: [f"{('red', 'blue')[number % 2]} {('left', 'right')[number % 3 % 2]}"] for number, name in enumerate(ids)
    }
    folder = tmp_path_factory.mktemp("elsewhere")
    dataset = write_dataset(
        folder / "data", name="words", modality="mixed", subjects=subjects, stimuli=Stimuli(ids, captions=captions),
        zscore="all",
    )  # fmt: skip
    settings = {name: value for name, value in tiny_settings.items() if not name.startswith("image")}
    train(dataset, folder / "run", from_dict(RunConfig, settings))
    return served(folder / "run")


@pytest.mark.parametrize(
    ("subject", "saying"),
    [
        pytest.param("volume", r"site \d+(, V1)?: -?\d", id="volume"),
        pytest.param("sensors", r"site \d+ \(O1, \d+ ms\): -?\d", id="sensors"),
        pytest.param("neurons", r"site \d+: -?\d", id="neurons"),
    ],
)
def test_brains_without_a_surface(visit, elsewhere, subject, saying):
    page = visit(f"#subject={subject}", at=elsewhere)
    shown(page, "measured response", subject)
    page.wait_for_selector("#ranks td")
    assert "decodes no pictures" in page.inner_text("#result")
    assert lit(page) > 0.01
    box = page.locator("#cortex").bounding_box()
    for x, y in itertools.product(np.linspace(0.4, 0.6, 7), (0.2, 0.4)):
        page.mouse.move(box["x"] + box["width"] * x, box["y"] + box["height"] * y)
        page.wait_for_timeout(120)
        if re.match(saying, page.inner_text("#hover")):
            break
    else:
        pytest.fail(f"no site is named under the pointer: {page.inner_text('#hover')!r}")
    if subject == "volume":
        assert_left_is_left(page, elsewhere, box)
    page.click("#tab-encode")
    page.fill("#in-text", "red left")
    page.keyboard.press("Enter")
    shown(page, "expected response", subject)
    page.wait_for_selector("#downloads a")
    saved = page.locator("#downloads a").all_inner_texts()
    assert ("NIfTI" in saved) == (subject == "volume") and "npy" in saved
    assert page.locator("#in-file").count() == 0  # nothing to show a picture to
    page.click("#tab-tokens")
    page.wait_for_selector("[data-token]")
    page.click("#tab-scores")
    page.wait_for_selector("text=This run was not scored yet")
    shown(page, "voxel r", subject)


def assert_left_is_left(page, address: str, box: dict) -> None:
    """Along a slice, sites that the pointer names lie further and further to the right."""
    with urllib.request.urlopen(f"{address}api/spaces/volume") as answer:
        space = json.load(answer)
    voxels = np.stack(np.unravel_index(np.frombuffer(base64.b64decode(space["index"]), "<i4"), space["shape"]), axis=1)
    right_mm = voxels @ np.array(space["affine"])[0, :3] + space["affine"][0][3]
    named = []
    for x in np.linspace(0.02, 0.3, 15):
        page.mouse.move(box["x"] + box["width"] * x, box["y"] + box["height"] * 0.15)
        page.wait_for_timeout(120)
        if found := re.match(r"site (\d+)", page.inner_text("#hover")):
            named.append(right_mm[int(found[1])])
    assert len(set(named)) > 2 and named == sorted(named)
