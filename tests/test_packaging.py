"""What is installed, and what an import costs."""

import re
import subprocess
import sys
import tomllib
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement


@pytest.fixture(scope="module")
def project(project_root: Path) -> dict:
    return tomllib.loads((project_root / "pyproject.toml").read_text())["project"]


def reached(requirements: list[str]) -> set[str]:
    """The names of all that these requirements install, their own requirements included."""
    seen: set[tuple[str, str]] = set()
    queue = [Requirement(text) for text in requirements]
    while queue:
        requirement = queue.pop()
        for extra in ("", *requirement.extras):
            if (requirement.name, extra) in seen:
                continue
            seen.add((requirement.name, extra))
            try:
                lines = requires(requirement.name) or []
            except PackageNotFoundError:  # of an extra that is not installed here, or for another system
                continue
            found = (Requirement(line) for line in lines)
            queue += [r for r in found if r.marker is None or r.marker.evaluate({"extra": extra})]
    return {re.sub(r"[-_.]+", "-", name).lower() for name, _ in seen}


def test_torchvision_comes_with_vision_metrics_alone(project):
    extras = dict(project["optional-dependencies"])
    assert "torchvision" in reached(extras.pop("vision-metrics"))
    everything = [*project["dependencies"], *(line for extra in extras.values() for line in extra)]
    names = reached(everything)
    assert {"torch", "nilearn", "transformers", "pandas"} <= names  # the last only through nilearn: the walk is deep
    assert "torchvision" not in names


def test_every_dependency_is_pinned_and_by_version_alone(project, project_root):
    lines = [line for line in (project_root / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    pins = {}
    for line in lines:
        assert re.fullmatch(r"[\w.-]+==[\w.]+", line), f"a name, == and a version, got {line!r}"
        name, version = line.split("==")
        pins[re.sub(r"[-_.]+", "-", name).lower()] = version
    assert pins["torch"] == "2.13.0"
    assert "torchvision" not in pins
    wanted = [
        *project["dependencies"],
        *(line for extra in project["optional-dependencies"].values() for line in extra),
    ]
    for requirement in map(Requirement, wanted):
        if requirement.name not in ("brainjanus", "torchvision"):  # no build of the latter fits the pinned torch
            assert requirement.specifier.contains(pins[requirement.name.lower()]), (
                f"{requirement} against constraints.txt"
            )


def test_the_citation_is_valid_and_of_this_version(project, project_root):
    """Against what the schema of CFF 1.2.0 asks for; unknown keys are refused there, too."""
    facts = yaml.safe_load((project_root / "CITATION.cff").read_text())
    assert facts["cff-version"] == "1.2.0"
    assert (facts["type"], facts["title"]) == ("software", "BrainJanus")
    assert facts["version"] == project["version"]
    assert facts["license"] == project["license"]
    known = {"cff-version", "message", "type", "title", "abstract", "authors", "version", "license", "keywords"}
    assert facts.keys() == known | {"references"}
    assert facts["authors"] == [{"name": "The BrainJanus developers"}]
    for work in facts["references"]:
        assert {"type", "title", "authors", "year", "notes"} <= work.keys()
        assert work["type"] == "article" and isinstance(work["year"], int)
        assert all(person.keys() == {"family-names", "given-names"} for person in work["authors"])
        assert re.fullmatch(r"10\.\d{4,9}/\S+", work["doi"])
    assert "2606.30319" in facts["references"][0]["doi"]


@pytest.mark.parametrize("package", ["tokenizers", "model", "generate", "train"])
def test_model_and_training_import_without_what_a_gpu_machine_lacks(package):
    absent = ["tyro", "nibabel", "nilearn", "sklearn", "matplotlib", "h5py", "transformers"]
    code = (
        f"import importlib, pkgutil, sys\n"
        f"sys.modules.update(dict.fromkeys({absent!r}))\n"
        f"package = importlib.import_module('brainjanus.{package}')\n"
        f"for module in pkgutil.iter_modules(getattr(package, '__path__', []), package.__name__ + '.'):\n"
        f"    importlib.import_module(module.name)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
