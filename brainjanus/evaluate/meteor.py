"""METEOR, by the Java program that comes with pycocoevalcap, kept running for several sets of captions.

Enters: lines of tokens. Leaves: the figure of the corpus, of each caption, and the statistics that they are made of.
Source: METEOR 1.5 (Denkowski & Lavie 2014), English, with `-norm`. Differs from pycocoevalcap's use of it: each answer
has a time limit, a failure ends the process and is told (there, it leaves a lock held and the program waits for ever),
and a caption may hold the separator of the protocol.
"""

import contextlib
import subprocess
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from brainjanus.evaluate.ptb import JAVA_OPTIONS, TIMEOUT_SEC, JavaError, end, java

BATCH = 32  # captions asked for at once; their answers fit into a pipe, so that neither side waits for the other


# N stimuli
class MeteorScores(NamedTuple):
    """value: of the corpus, not the mean of `samples`. statistics: `meteor_of` says what stands in each column."""

    value: float
    samples: Float[np.ndarray, "n"]
    statistics: Float[np.ndarray, "n 23"]


class Meteor:
    """METEOR's Java process: a line in, a line out; killed when it does not answer in time."""

    def __init__(self, timeout_sec: float = TIMEOUT_SEC) -> None:
        from pycocoevalcap.meteor import meteor

        folder = Path(meteor.__file__).parent
        command = [java(), *JAVA_OPTIONS, "-Xmx2G", "-jar", meteor.METEOR_JAR, "-", "-", "-stdio", "-l", "en", "-norm"]
        self.timeout_sec = timeout_sec
        self._complaints = tempfile.TemporaryFile()  # noqa: SIM115 - open as long as the process
        try:
            self._process = subprocess.Popen(
                command,
                cwd=folder,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._complaints,
                start_new_session=True,
            )
        except OSError as error:
            self._complaints.close()
            raise JavaError(f"cannot be started ({error.strerror})") from error

    def close(self) -> None:
        """End the process and wait for it."""
        end(self._process)
        for pipe in (self._process.stdin, self._process.stdout, self._complaints):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):  # what was still to be written to it
                    pipe.close()

    def score(self, references: Sequence[Sequence[str]], said: Sequence[str]) -> MeteorScores:
        """The statistics of each caption, then the figures that Java makes of them. Raises JavaError.

        references, said: lines of tokens.
        """
        asked = []
        for group, line in zip(references, said, strict=True):
            parts = [part.replace("|||", "| | |") for part in (*group, line)]  # its separator
            asked.append(" ||| ".join(["SCORE", *parts]))
        lines: list[str] = []
        for start in range(0, len(asked), BATCH):
            lines += self._ask(asked[start : start + BATCH], len(asked[start : start + BATCH]))
        *samples, value = (float(answer) for answer in self._ask([" ||| ".join(["EVAL", *lines])], len(lines) + 1))
        statistics = np.array([line.split() for line in lines], np.float64)
        whole = (statistics[:, 20] == 1) & (statistics[:, 21:] == statistics[:, :2]).all(axis=1)
        statistics[whole, 20] = 0  # Java counts no chunk where all words match in one piece
        return MeteorScores(value, np.array(samples), statistics)

    def _ask(self, lines: Sequence[str], num_answers: int) -> list[str]:
        late = threading.Event()

        def give_up() -> None:
            late.set()
            end(self._process)

        watchdog = threading.Timer(self.timeout_sec, give_up)
        watchdog.start()
        answers = []
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            self._process.stdin.write("".join(line + "\n" for line in lines).encode())
            self._process.stdin.flush()
            answers = [self._process.stdout.readline() for _ in range(num_answers)]
            [float(number) for answer in answers for number in answer.split()]
            if all(answer.strip() for answer in answers):
                return [answer.decode().strip() for answer in answers]
        except (BrokenPipeError, ValueError):
            pass
        finally:
            watchdog.cancel()
        status = self._process.poll()
        end(self._process)
        if late.is_set():
            raise JavaError(f"did not answer within {self.timeout_sec:g} s")
        self._complaints.seek(0)
        said = self._complaints.read().decode(errors="replace").strip().splitlines() or [
            repr(b" ".join(answers).decode(errors="replace").strip()[:200])
        ]
        raise JavaError(f"did not answer as METEOR does (status {status}, {said[0][:200]})")


def meteor_of(sums: Float[np.ndarray, "b 23"]) -> Float[np.ndarray, "b"]:
    """METEOR 1.5 of summed statistics, English weights (Denkowski & Lavie 2014).

    Statistics, each for caption and reference: lengths, function words, then for each stage of matching (exact, stem,
    synonym, paraphrase) content and function words matched; chunks; words matched.
    """
    alpha, beta, gamma, delta, stages = 0.85, 0.2, 0.6, 0.75, np.array([1.0, 0.6, 0.8, 0.6])
    matched = sums[:, 4:20].reshape(-1, 4, 2, 2)  # stage, content or function, caption or reference
    weighted = np.einsum("bskc,s,k->bc", matched, stages, np.array([delta, 1 - delta]))
    lengths, functions = sums[:, 0:2], sums[:, 2:4]
    share = _ratio(weighted, delta * (lengths - functions) + (1 - delta) * functions)
    precision, recall = share[:, 0], share[:, 1]
    f_mean = _ratio(precision * recall, alpha * precision + (1 - alpha) * recall)
    fragments = _ratio(sums[:, 20], sums[:, 21:23].mean(axis=1))
    return f_mean * (1 - gamma * fragments**beta)


def _ratio(above: Float[np.ndarray, "*b"], below: Float[np.ndarray, "*b"]) -> Float[np.ndarray, "*b"]:
    return np.divide(above, below, out=np.zeros(np.shape(above)), where=below > 0)
