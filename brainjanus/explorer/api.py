"""The explorer over HTTP: requests are checked, become jobs, and their answers leave as JSON, PNG, NIfTI or GIfTI.

Safety. Without a token only names of this machine are answered to (DNS rebinding), and whatever starts work needs a
header that no other site's page can send (cross-site requests). Uploads are a body of bytes: limited while they are
read, decoded as PNG, JPEG or WebP alone, kept in memory under a name of ours, never written. Nothing that a request
says is a path.
"""

import asyncio
import io
import re
import secrets
import tempfile
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

import numpy as np
from fastapi import FastAPI, Header, HTTPException, Query, Request, Response, Security
from fastapi import Path as InPath
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse
from fastapi.security import HTTPBearer
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException as AnyHTTPException

from brainjanus.core.errors import UserError
from brainjanus.data.readers.pictures import decode as decode_picture
from brainjanus.data.readers.pictures import fit
from brainjanus.evaluate.cortex import draw_maps, mesh_of
from brainjanus.explorer.answers import Map, packed, png, told
from brainjanus.explorer.jobs import Job, Jobs
from brainjanus.explorer.session import Explorer, Shown, StimulusFacts
from brainjanus.explorer.surface import SIDES, mesh_file, scalars_file
from brainjanus.outputs import save_gifti, save_nifti

STATIC = Path(__file__).parent / "static"
MOST_BYTES, MOST_PIXELS = 8 << 20, 25_000_000  # of an uploaded picture
MOST_UPLOADS = 64
PICTURE_KINDS = ("image/png", "image/jpeg", "image/webp")
MAGIC = {b"\x89PNG\r\n\x1a\n": "PNG", b"\xff\xd8\xff": "JPEG", b"RIFF": "WebP"}
LOCAL = ("127.0.0.1", "localhost", "::1")
MOST_ASKED = 1 << 20  # bytes of a request that is no picture
SMALL, DAY = 128, "private, max-age=86400"
HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' data: blob:; style-src 'self' 'unsafe-inline'; "
    "connect-src 'self' data: blob:; worker-src 'self' blob:; font-src 'self' data:; frame-ancestors 'none'; "
    "base-uri 'none'; form-action 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}
REPORT = "sandbox; default-src 'none'; img-src data:; style-src 'unsafe-inline'; frame-ancestors 'self'"
MEDIA = {"png": "image/png", "npy": "application/octet-stream", "nii.gz": "application/gzip"}
Name = Annotated[str, Field(max_length=300)]
Seed = Annotated[int, Field(ge=0, lt=2**31)]


class Asked(BaseModel):
    """What all requests share: an unknown key is a mistake."""

    model_config = ConfigDict(extra="forbid")


class ShownIn(Asked):
    """What a brain is shown: the picture of a held-out stimulus, or an uploaded one, and a sentence."""

    stimulus: Name | None = Field(None, description="id of a held-out stimulus, whose picture is shown")
    picture: Annotated[str, Field(max_length=64)] | None = Field(None, description="id of an uploaded picture")
    text: Annotated[str, Field(max_length=1000)] | None = Field(None, description="a sentence")


class EncodeIn(Asked):
    """What response is to be expected."""

    shown: ShownIn
    against: ShownIn | None = Field(None, description="whose expected response is taken off: a contrast")
    subjects: Annotated[list[Name], Field(max_length=64)] = Field([], description="whose brains; none: all")
    samples: int = Field(0, ge=0, le=32, description="single trials that the spread is taken over; 0: no spread")
    seed: Seed = 0


class DecodeIn(Asked):
    """What a measured response tells."""

    subject: Name
    stimulus: Name
    repeat: int | None = Field(None, ge=0, le=10_000, description="which trial, from 0; none: the mean over all")
    hidden: Annotated[list[Name], Field(max_length=64)] = Field([], description="ROIs that the model is not shown")
    samples: int = Field(0, ge=0, le=8, description="pictures and captions drawn beside the expected ones")
    guidance: float = Field(1.0, ge=0, le=10, description="above 1 what the response says is exaggerated")
    temperature: float = Field(1.0, ge=0, le=5, description="of samples")
    seed: Seed = 0
    ranked: bool = Field(True, description="whether what was seen is ranked among other held-out stimuli")


class TokensIn(Asked):
    """A response token by token, with some swapped or masked."""

    subject: Name
    stimulus: Name
    repeat: int | None = Field(None, ge=0, le=10_000)
    swapped: Annotated[dict[int, int], Field(max_length=256)] = Field({}, description="token -> code in its place")
    masked: Annotated[list[int], Field(max_length=4096)] = Field([], description="tokens whose sites are not shown")
    seed: Seed = 0


class AccuracyIn(Asked):
    """How well each site is predicted: Pearson's r across held-out stimuli."""

    subject: Name
    direction: Literal["image->brain", "text->brain"] = "image->brain"


class Problem(BaseModel):
    """What a mistake is answered with: one sentence."""

    detail: str


class MapOut(BaseModel):
    """A map of one subject: base64 of little-endian float32, one number a site."""

    values: str
    spread: str | None


class DecodedOut(BaseModel):
    """What a response says. pictures: base64 of PNG files, the expected one first; captions: the likeliest first."""

    measured: str
    pictures: list[str]
    captions: list[str]
    ranks: dict[str, int]
    log_p: dict[str, float]
    candidates: int


class PartOut(BaseModel):
    """A stretch of a sequence of tokens."""

    modality: str
    opening: int
    tokens: list[int]
    words: list[str]


class TokensOut(BaseModel):
    """A response token by token. patch: base64 of int32, of each site; values: of float32."""

    sequence: list[PartOut]
    codes: list[int]
    num_codes: int
    per_patch: int
    patch: str
    values: str
    before: DecodedOut
    after: DecodedOut | None


class JobOut(BaseModel):
    """Work that was asked for. done of total steps of what is going on (name). result: once the state is done; of
    encode and accuracy a map for each subject."""

    id: str
    kind: Literal["encode", "decode", "tokens", "accuracy"]
    state: Literal["waiting", "running", "done", "failed", "cancelled"]
    name: str
    done: int
    total: int
    problem: str | None
    result: DecodedOut | TokensOut | dict[str, MapOut] | None


PROBLEMS: dict[int | str, dict[str, Any]] = {
    400: {"model": Problem, "description": "what is asked does not fit the run"},
    401: {"model": Problem, "description": "the token is missing or another"},
    403: {"model": Problem, "description": "asked by another name than those of this machine"},
    404: {"model": Problem, "description": "not there"},
    409: {"model": Problem, "description": "the job is not done, or has no maps"},
    413: {"model": Problem, "description": "too much"},
    422: {"model": Problem, "description": "not of the form that is described here"},
    429: {"model": Problem, "description": "too much is waiting already"},
}
PICTURE_BODY = {
    "requestBody": {
        "required": True,
        "content": {kind: {"schema": {"type": "string", "format": "binary"}} for kind in PICTURE_KINDS},
    }
}


class Uploads:
    """Pictures that users gave, the last few, in memory."""

    def __init__(self) -> None:
        self._kept: OrderedDict[str, np.ndarray] = OrderedDict()

    def add(self, picture: np.ndarray) -> str:
        name = secrets.token_urlsafe(12)
        self._kept[name] = picture
        while len(self._kept) > MOST_UPLOADS:
            self._kept.popitem(last=False)
        return name

    def get(self, name: str) -> np.ndarray:
        if name not in self._kept:
            raise UserError(
                f"picture: expected one that was uploaded and is still kept, got '{name}'. Upload it again."
            )
        return self._kept[name]


def make_app(explorer: Explorer, *, token: str | None = None, jobs: Jobs | None = None) -> FastAPI:
    """The HTTP API and the page. token: that every request has to bring; None: requests of this machine alone."""
    token = None if token is None else check_token(token)
    queue, uploads = jobs or Jobs(), Uploads()

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(queue.close)

    app = FastAPI(
        title="BrainJanus explorer", version="1", docs_url=None, redoc_url=None, openapi_url="/api/schema",
        redirect_slashes=False, lifespan=lifespan, responses=PROBLEMS,
        dependencies=[Security(HTTPBearer(auto_error=False, description="the printed token; on loopback none"))],
        description=f"Ask {explorer.about()['run']}: what brains answer, and what responses say.",
    )  # fmt: skip
    guard(app, token)
    app.state.jobs, app.state.uploads = queue, uploads
    Client = Annotated[str, Header(alias="X-Client", min_length=1, max_length=64, description="any name of your own")]

    def start(client: str, kind: str, work: Callable[[], Any]) -> dict[str, Any]:
        return told_job(queue.submit(client, kind, work))

    def shown_of(asked: ShownIn) -> Shown:
        if asked.stimulus is not None and asked.picture is not None:
            raise UserError("shown: expected a stimulus or an uploaded picture, got both. Leave one of them out.")
        picture = None if asked.picture is None else uploads.get(asked.picture)
        return Shown(asked.stimulus, picture, asked.text)

    def job_of(identity: str) -> Job:
        job = queue.get(identity)
        if job is None:
            raise HTTPException(404, f"job: expected one that is known here, got '{identity[:64]}'. Start it again.")
        return job

    @app.get("/api/about", tags=["run"])
    def about() -> dict[str, Any]:
        """The run, its subjects and ROIs, and what it can be asked."""
        return explorer.about()

    @app.get("/api/stimuli", tags=["run"])
    def stimuli(
        query: Annotated[str, Query(max_length=200)] = "",
        subject: Annotated[str | None, Query(max_length=300)] = None,
        start: Annotated[int, Query(ge=0, le=10**7)] = 0,
        most: Annotated[int, Query(ge=1, le=200)] = 50,
        identity: Annotated[str | None, Query(alias="id", max_length=300)] = None,
    ) -> dict[str, Any]:
        """Held-out stimuli whose id or captions hold all words of the query; or the one with this id."""
        if identity is not None:
            return {"total": 1, "stimuli": [told_stimulus(explorer.facts(identity))]}
        found = explorer.find(query, subject, start, most)
        return {"total": found.total, "stimuli": [told_stimulus(one) for one in found.stimuli]}

    @app.get("/api/stimuli/{stimulus:path}/picture.png", tags=["run"], response_class=Response)
    def picture(stimulus: str, small: bool = False) -> Response:
        """The picture of a held-out stimulus; small: at most 128 pixels a side."""
        return png_response(explorer.picture(stimulus), SMALL if small else None)

    @app.get("/api/spaces/{subject}", tags=["run"])
    def space(subject: Annotated[str, InPath(max_length=300)]) -> dict[str, Any]:
        """Where the sites of a subject lie, and which are those of each ROI (base64 of int32)."""
        found = explorer.space(subject)
        assert found.index is not None
        facts: dict[str, Any] = {
            "geometry": explorer.geometry(subject),
            "sites": found.num_sites,
            "index": packed(found.index),
            "rois": {name: packed(np.flatnonzero(mask)) for name, mask in found.rois.items()},
        }
        if facts["geometry"] == "surface":
            facts["left_vertices"] = int(found.geometry["left_vertices"])
        if facts["geometry"] == "sensors":
            facts |= {name: list(found.geometry[name]) for name in ("names", "times_sec")}
        if facts["geometry"] == "volume":
            facts["shape"] = [int(size) for size in found.geometry["shape"]]
            facts["affine"] = np.asarray(found.geometry["affine"], dtype=float)[:3].tolist()
        return facts

    @app.get("/api/mesh/{side}.mz3", tags=["run"], response_class=Response)
    def mesh(side: Literal["left", "right"]) -> Response:
        """The inflated fsaverage5 surface of one hemisphere."""
        return Response(mesh_file(side), media_type="application/octet-stream", headers={"Cache-Control": DAY})

    @app.get("/api/depth/{side}.mz3", tags=["run"], response_class=Response)
    def depth(side: Literal["left", "right"]) -> Response:
        """Its sulcal depth."""
        return Response(
            scalars_file(mesh_of(side).depth), media_type="application/octet-stream", headers={"Cache-Control": DAY}
        )

    @app.get("/api/scores", tags=["run"])
    def scores() -> list[dict[str, Any]]:
        """The records of scores.json, if the run was scored."""
        return explorer.scores()

    @app.get("/api/report", tags=["run"], response_class=Response)
    def report() -> Response:
        """The page that was written with the scores: tables and figures, without scripts."""
        headers = {"Content-Security-Policy": REPORT, "Cache-Control": "no-cache"}
        return Response(explorer.report(), media_type="text/html", headers=headers)

    @app.get("/api/measured/{subject}", tags=["run"])
    def measured(
        subject: str,
        stimulus: Annotated[str, Query(max_length=300)],
        repeat: Annotated[int | None, Query(ge=0, le=10_000)] = None,
    ) -> dict[str, Any]:
        """The response that was measured (base64 of float32, z-scored), a mean over repeats or one trial."""
        return {"values": packed(explorer.measured(subject, stimulus, repeat))}

    @app.post("/api/pictures", tags=["uploads"], status_code=201, openapi_extra=PICTURE_BODY)
    async def upload(request: Request, client: Client) -> dict[str, Any]:
        """Give a picture: its bytes (PNG, JPEG or WebP) as the body. It is cropped to a square and kept for a while."""
        del client
        data = await read_body(request)
        return await asyncio.to_thread(kept, data)

    def kept(data: bytes) -> dict[str, Any]:
        size = explorer.checkpoint.tokenizers.image
        if size is None:
            raise UserError("picture: expected a run that reads pictures, got one that does not. Give a sentence.")
        made = fit(checked_picture(data), size.config.image_size)
        return {"id": uploads.add(made), "size": made.shape[0]}

    @app.get("/api/pictures/{identity}", tags=["uploads"], response_class=Response)
    def uploaded(identity: Annotated[str, InPath(max_length=64)]) -> Response:
        """An uploaded picture as the model sees it."""
        return png_response(uploads.get(identity))

    @app.post("/api/encode", tags=["jobs"], status_code=202, responses={202: {"model": JobOut}})
    def encode(asked: EncodeIn, client: Client) -> dict[str, Any]:
        """Start a job: the expected responses to a picture, a sentence, or both."""
        shown, against = shown_of(asked.shown), None if asked.against is None else shown_of(asked.against)
        return start(
            client, "encode",
            lambda: explorer.encode(shown, asked.subjects, against=against, samples=asked.samples, seed=asked.seed),
        )  # fmt: skip

    @app.post("/api/decode", tags=["jobs"], status_code=202, responses={202: {"model": JobOut}})
    def decode(asked: DecodeIn, client: Client) -> dict[str, Any]:
        """Start a job: the pictures and captions that a measured response tells of."""
        return start(client, "decode", lambda: explorer.decode(**asked.model_dump()))

    @app.post("/api/tokens", tags=["jobs"], status_code=202, responses={202: {"model": JobOut}})
    def tokens(asked: TokensIn, client: Client) -> dict[str, Any]:
        """Start a job: a response token by token, and what changes with some swapped or masked."""
        return start(client, "tokens", lambda: explorer.tokens(**asked.model_dump()))

    @app.post("/api/accuracy", tags=["jobs"], status_code=202, responses={202: {"model": JobOut}})
    def accuracy(asked: AccuracyIn, client: Client) -> dict[str, Any]:
        """Start a job: how well each site of a subject is predicted."""
        return start(
            client, "accuracy", lambda: {asked.subject: Map(explorer.accuracy(asked.subject, asked.direction))}
        )

    @app.get("/api/jobs/{identity}", tags=["jobs"], responses={200: {"model": JobOut}})
    async def job(
        identity: Annotated[str, InPath(max_length=64)], wait: Annotated[float, Query(ge=0, le=30)] = 0
    ) -> dict[str, Any]:
        """How far a job is, and its result. wait: seconds that the answer may be held back for the end of the job."""
        found, patience = job_of(identity), wait
        while patience > 0 and not found.over.is_set():
            await asyncio.sleep(0.01)
            patience -= 0.01
        return told_job(found)

    @app.delete("/api/jobs/{identity}", tags=["jobs"], responses={200: {"model": JobOut}})
    def cancel(identity: Annotated[str, InPath(max_length=64)]) -> dict[str, Any]:
        """End a job."""
        job_of(identity)
        found = queue.cancel(identity)
        assert found is not None
        return told_job(found)

    @app.get("/api/jobs/{identity}/maps/{file}", tags=["jobs"], response_class=Response)
    def download(
        identity: Annotated[str, InPath(max_length=64)], file: Annotated[str, InPath(max_length=320)]
    ) -> Response:
        """A map of a finished job: SUBJECT.png, SUBJECT.npy, SUBJECT.nii.gz, SUBJECT.L.func.gii, SUBJECT.R.func.gii,
        SUBJECT.left.mz3 or SUBJECT.right.mz3."""
        found = job_of(identity)
        maps = maps_of(found)
        for subject, values in maps.items():
            if file.startswith(f"{subject}."):
                return map_file(explorer, subject, values, file.removeprefix(f"{subject}."), found.kind)
        raise HTTPException(404, f"map: expected one of {', '.join(maps) or 'no subject'}, got '{file}'. Correct it.")

    @app.api_route("/", methods=["GET", "HEAD"], include_in_schema=False)
    def page() -> FileResponse:
        return FileResponse(STATIC / "index.html", headers={"Cache-Control": "no-cache"})

    @app.get("/static/{file}", include_in_schema=False)
    def static(file: str) -> FileResponse:
        if file not in static_files():
            raise HTTPException(404, f"file: expected one of the page, got '{file[:64]}'. Open the page again.")
        return FileResponse(STATIC / file, headers={"Cache-Control": "no-cache"})

    return app


@lru_cache(maxsize=1)
def static_files() -> frozenset[str]:
    return frozenset(path.name for path in STATIC.iterdir() if path.is_file())


def guard(app: FastAPI, token: str | None) -> None:
    """Who may ask, and how a mistake is answered: with one sentence, never with a traceback."""

    def sentence(status: int, text: str) -> JSONResponse:
        return JSONResponse({"detail": text}, status, headers=HEADERS)

    @app.middleware("http")
    async def admit(request: Request, go_on: Callable[[Request], Awaitable[Response]]) -> Response:
        if token is None:
            host = request.headers.get("host", "")
            if not is_local(host):
                return sentence(
                    403, f"host: expected {', '.join(LOCAL)}, got '{host[:64]}'. Open the page by one of these."
                )
        else:
            given = request.headers.get("authorization", "").removeprefix("Bearer ").strip()
            given = given or request.query_params.get("token", "") or request.cookies.get(cookie_of(request), "")
            if not secrets.compare_digest(given.encode(), token.encode()):
                return sentence(401, "token: expected that which `brainjanus explore` printed, got none or another.")
        length = request.headers.get("content-length", "0")
        if request.url.path != "/api/pictures" and (
            not length.isdecimal() or int(length) > MOST_ASKED or "transfer-encoding" in request.headers
        ):
            return sentence(
                413, f"body: expected at most {MOST_ASKED >> 20} MB and its length, got others. Ask for less."
            )
        response = await go_on(request)
        for name, value in HEADERS.items():
            response.headers.setdefault(name, value)
        if token is not None and request.query_params.get("token"):
            response.set_cookie(cookie_of(request), token, httponly=True, samesite="strict")
        return response

    @app.exception_handler(UserError)
    async def mistaken(_: Request, error: UserError) -> JSONResponse:
        return sentence(429 if str(error).startswith("jobs:") else 400, str(error))

    @app.exception_handler(RequestValidationError)
    async def malformed(_: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        return sentence(422, f"{where}: {str(first['msg'])[:300]}. See /api/schema for what is expected.")

    @app.exception_handler(AnyHTTPException)
    async def refused(request: Request, error: AnyHTTPException) -> JSONResponse:
        asked = f"{request.method} {request.url.path[:100]}"
        told = {
            "Not Found": f"{asked}: expected a path of /api/schema, got one that is not there. Correct it.",
            "Method Not Allowed": f"{asked}: expected a method of /api/schema, got another. Correct it.",
            "There was an error parsing the body": f"{asked}: expected JSON in UTF-8, got something else. Correct it.",
        }
        return sentence(error.status_code, told.get(str(error.detail), str(error.detail)))

    @app.exception_handler(Exception)
    async def ours(request: Request, error: Exception) -> JSONResponse:
        return sentence(500, f"{request.url.path[:100]}: expected an answer, got {type(error).__name__}: our mistake.")


def cookie_of(request: Request) -> str:
    """Cookies are shared by all ports of a host, where several explorers may listen."""
    return f"brainjanus-{request.url.port or 80}"


def is_local(host: str) -> bool:
    """Whether a Host header names this machine, as seen from itself."""
    try:
        return urlsplit(f"//{host}").hostname in LOCAL
    except ValueError:
        return False


def check_token(token: str) -> str:
    """Raises UserError for one that cannot stand in an address, or is none."""
    if not re.fullmatch(r"[\w.~-]{1,200}", token, re.ASCII):
        raise UserError(
            "--token: expected letters, digits, '.', '_', '~' and '-', at least one, got others. Leave it out: where "
            "one is needed it is made."
        )
    return token


async def read_body(request: Request) -> bytes:
    """Raises HTTPException 413 as soon as there is too much."""
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size > MOST_BYTES:
            raise HTTPException(413, f"picture: expected at most {MOST_BYTES >> 20} MB, got more. Make it smaller.")
        parts.append(part)
    return b"".join(parts)


def checked_picture(data: bytes) -> Any:
    """Raises UserError for what is no PNG, JPEG or WebP, or has too many pixels."""
    kind = next((kind for magic, kind in MAGIC.items() if data.startswith(magic)), None)
    if kind is None or (kind == "WebP" and data[8:12] != b"WEBP"):
        raise UserError("picture: expected the bytes of a PNG, JPEG or WebP file, got something else. Convert it.")
    try:
        with Image.open(io.BytesIO(data), formats=[kind.upper()]) as opened:
            width, height = opened.size
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        width = height = 0  # what is wrong is said below
    if width * height > MOST_PIXELS:
        raise UserError(f"picture: expected at most {MOST_PIXELS:,} pixels, got {width} x {height}. Make it smaller.")
    try:
        with Image.open(io.BytesIO(data), formats=[kind.upper()]) as opened:
            if opened.has_transparency_data:  # as pages show it
                white = Image.new("RGBA", opened.size, "white")
                white.alpha_composite(opened.convert("RGBA"))
                file = io.BytesIO()
                white.convert("RGB").save(file, "PNG")
                data, kind = file.getvalue(), "PNG"
        return decode_picture("picture", data, formats=[kind.upper()], upright=True)
    except (UserError, OSError, SyntaxError, ValueError) as error:
        raise UserError(
            f"picture: expected one that can be decoded, got a damaged or an unusual file of {len(data):,} bytes. "
            "Save it again as PNG or JPEG."
        ) from error


def png_response(picture: np.ndarray, most: int | None = None) -> Response:
    return Response(png(picture, most), media_type="image/png", headers={"Cache-Control": DAY})


def told_stimulus(one: StimulusFacts) -> dict[str, Any]:
    return {"id": one.id, "captions": list(one.captions), "repeats": one.repeats}


def told_job(job: Job) -> dict[str, Any]:
    """A job as JSON: its result once it is done."""
    facts: dict[str, Any] = {
        "id": job.id,
        "kind": job.kind,
        "state": job.state,
        "name": job.name,
        "done": job.done,
        "total": job.total,
        "problem": job.problem or None,
        "result": None,
    }
    if job.state == "done":
        facts["result"] = told(job.result)
    return facts


def maps_of(job: Job) -> dict[str, np.ndarray]:
    """The maps of a finished job by subject. Raises HTTPException if it has none."""
    if job.state != "done" or not isinstance(job.result, dict):
        raise HTTPException(409, f"job: expected a finished one of encode or accuracy, got {job.kind} ({job.state}).")
    return {subject: one.values for subject, one in job.result.items()}


def map_file(explorer: Explorer, subject: str, values: np.ndarray, form: str, kind: str) -> Response:
    """One map in one form. Raises UserError for a form that the subject's space does not have."""
    space, label = explorer.space(subject), "voxel r" if kind == "accuracy" else "expected response (z)"
    if form == "png":
        return Response(draw_maps(space, {subject: values}, label=label), media_type=MEDIA["png"])
    if form == "npy":
        file = io.BytesIO()
        np.save(file, values.astype(np.float32))
        return attached(file.getvalue(), f"{subject}.npy", MEDIA["npy"])
    if form in (f"{side}.mz3" for side in SIDES):
        return Response(scalars_file(space.to_surface(values)[form.split(".")[0]]), media_type=MEDIA["npy"])
    with tempfile.TemporaryDirectory() as folder:
        if form == "nii.gz":
            save_nifti(Path(folder) / "map.nii.gz", values[None], space)
            return attached((Path(folder) / "map.nii.gz").read_bytes(), f"{subject}.nii.gz", MEDIA["nii.gz"])
        if form in ("L.func.gii", "R.func.gii"):
            save_gifti(Path(folder), "map", values[None], space, [kind])
            letter = form[0]
            data = (Path(folder) / f"map_hemi-{letter}.func.gii").read_bytes()
            return attached(data, f"{subject}_hemi-{letter}.func.gii", "application/xml")
    raise HTTPException(404, f"map: expected png, npy, nii.gz, L.func.gii or R.func.gii, got '{form[:32]}'.")


def attached(data: bytes, name: str, media: str) -> Response:
    safe = "".join(letter if letter.isascii() and (letter.isalnum() or letter in "._-") else "_" for letter in name)
    return Response(data, media_type=media, headers={"Content-Disposition": f'attachment; filename="{safe}"'})
