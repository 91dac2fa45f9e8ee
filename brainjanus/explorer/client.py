"""The explorer from Python, on this machine or another.

    import brainjanus as bj
    lab = bj.connect("http://127.0.0.1:8765")
    faces = lab.encode(text="a face", against="a house")
    print(faces["subj01"].values)
    print(lab.decode("subj01", lab.stimuli("dog")[0]["id"]).captions)

Pictures come as arrays [h, w, 3]. Where it asks, no model and no torch is loaded.
"""

import json
import secrets
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from brainjanus.core.errors import UserError
from brainjanus.explorer.answers import Decoded, Map, Tokens, read_decoded, read_maps, read_tokens

WAIT_SEC = 20  # that one question is held back for the end of a job


class Client:
    """An explorer that runs elsewhere. Raises UserError, with its sentence, for what it refuses."""

    def __init__(self, url: str, token: str | None = None) -> None:
        try:
            parts = urllib.parse.urlsplit(url)
            sound = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        except ValueError:  # a port that is no number
            sound = False
        if not sound:
            raise UserError(f"explorer: expected an address as http://127.0.0.1:8765, got '{url}'. Correct it.")
        token = token or urllib.parse.parse_qs(parts.query).get("token", [None])[0]  # an address as it was printed
        self.url = urllib.parse.urlunsplit((parts.scheme, parts.netloc, parts.path.rstrip("/"), "", ""))
        self._headers = {"X-Client": secrets.token_hex(8)}
        if token is not None:
            self._headers["Authorization"] = f"Bearer {token}"

    def about(self) -> dict[str, Any]:
        """The run, its subjects and ROIs, and what it can be asked."""
        return self._json("GET", "/api/about")

    def stimuli(self, query: str = "", subject: str | None = None, start: int = 0, most: int = 50) -> list[dict]:
        """Held-out stimuli whose id or captions hold all words of the query."""
        asked = {"query": query, "start": start, "most": most} | ({} if subject is None else {"subject": subject})
        return self._json("GET", f"/api/stimuli?{urllib.parse.urlencode(asked)}")["stimuli"]

    def encode(
        self, *, text: str | None = None, picture: Path | str | bytes | None = None, stimulus: str | None = None,
        against: Mapping[str, Any] | str | None = None, subjects: Sequence[str] = (), samples: int = 0, seed: int = 0,
    ) -> dict[str, Map]:  # fmt: skip
        """The response of each subject that is to be expected to a sentence, a picture (a file, or its bytes) or the
        picture of a held-out stimulus.

        against: what is taken off, a sentence or {"text": ..., "picture": ..., "stimulus": ...}. samples: single trials
        that the spread (standard deviation) is taken over; 0: no spread.
        """
        asked: dict[str, Any] = {"shown": self._shown(text=text, picture=picture, stimulus=stimulus)}
        if against is not None:
            asked["against"] = self._shown(**({"text": against} if isinstance(against, str) else against))
        made = self._job("/api/encode", asked | {"subjects": list(subjects), "samples": samples, "seed": seed})
        return read_maps(made)

    def decode(self, subject: str, stimulus: str, **options: Any) -> Decoded:
        """The pictures and captions that a measured response tells. options: repeat, hidden (ROIs), samples, guidance,
        temperature, seed, ranked."""
        return read_decoded(self._job("/api/decode", {"subject": subject, "stimulus": stimulus} | options))

    def tokens(self, subject: str, stimulus: str, **options: Any) -> Tokens:
        """A response token by token. options: repeat, swapped ({token: code}), masked (tokens), seed."""
        return read_tokens(self._job("/api/tokens", {"subject": subject, "stimulus": stimulus} | options))

    def accuracy(self, subject: str, direction: str = "image->brain") -> Float[np.ndarray, "v"]:
        """How well each site is predicted: Pearson's r across held-out stimuli."""
        return read_maps(self._job("/api/accuracy", {"subject": subject, "direction": direction}))[subject].values

    def scores(self) -> list[dict[str, Any]]:
        """The records of scores.json, if the run was scored."""
        return self._json("GET", "/api/scores")

    def _shown(self, **given: Any) -> dict[str, Any]:
        unknown = set(given) - {"text", "picture", "stimulus"}
        if unknown:
            raise UserError(f"against: expected text, picture or stimulus, got '{min(unknown)}'. Correct the name.")
        picture = given.get("picture")
        if picture is None:
            return given
        try:
            data = picture if isinstance(picture, bytes) else Path(picture).read_bytes()
        except OSError as error:
            raise UserError(
                f"picture {picture}: expected a file that can be read, got '{error.strerror}'. Correct the path."
            ) from error
        return given | {"picture": self._json("POST", "/api/pictures", data)["id"]}

    def _job(self, path: str, asked: Mapping[str, Any]) -> dict[str, Any]:
        job = self._json("POST", path, json.dumps(asked).encode())
        try:
            while job["state"] in ("waiting", "running"):
                job = self._json("GET", f"/api/jobs/{job['id']}?wait={WAIT_SEC}")
        except KeyboardInterrupt:
            self._json("DELETE", f"/api/jobs/{job['id']}")
            raise
        if job["state"] != "done":
            raise UserError(job["problem"] or f"job: expected an answer, got that it was {job['state']}. Ask again.")
        return job["result"]

    def _json(self, method: str, path: str, data: bytes | None = None) -> Any:
        headers = self._headers | ({} if data is None else {"Content-Type": "application/json"})
        request = urllib.request.Request(self.url + path, data, headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=WAIT_SEC + 40) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            try:
                detail = str(json.load(error)["detail"])
            except (ValueError, LookupError, TypeError):
                detail = f"explorer: expected an answer, got status {error.code}. Is {self.url} an explorer?"
            raise UserError(detail) from error
        except (OSError, ValueError) as error:
            raise UserError(
                f"explorer: expected one that answers at {self.url}, got '{error}'. Start it with `brainjanus explore "
                "RUN`, or correct the address."
            ) from error


def connect(url: str, token: str | None = None) -> Client:
    """An explorer that runs at an address, which may be the printed one with its token.

    token: that which was printed, where it listens to other machines.

    Raises UserError if nothing answers there.
    """
    client = Client(url, token)
    client.about()
    return client
