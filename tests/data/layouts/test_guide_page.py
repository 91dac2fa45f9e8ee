"""The page on layouts is true: each of its commands is given, in its order, beside miniatures of the real files."""

import json
import re
import shlex

import numpy as np

from brainjanus import cli
from brainjanus.data.dataset import Dataset

from . import (
    test_arrays,
    test_bids,
    test_brainjanus_release,
    test_mindeye1,
    test_mindeye2,
    test_mindllm,
    test_nsd,
    test_things,
)

FEWER_PIXELS = ("--image-size 384", "--image-size 8")


def test_every_command_of_the_page_on_layouts(planted, project_root, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    home = tmp_path / "home"
    nsd = test_nsd.Miniature(home / "nsd")
    test_mindeye2.build(home / "mindeye2", planted)
    test_mindeye1.build(home / "mindeye1", planted)
    test_mindllm.build(home / "mindllm", planted)
    test_brainjanus_release.build(home / "brainjanus", planted)
    test_things.build(home / "things-eeg2", "things-eeg2")
    test_things.build(home / "things-meg", "things-meg")
    test_bids.Volumes(home / "pets")
    test_arrays.build(home / "mine")
    test_mindllm.write_table(tmp_path / "nsd_stim_info_merged.csv")
    (tmp_path / "nsd_expdesign.mat").symlink_to(nsd.expdesign)
    (tmp_path / "recaptions.json").write_text(json.dumps({str(image): f"number {image}" for image in nsd.seen}))

    page = (project_root / "docs/guide/layouts.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```bash\n(.*?)^```$", page, flags=re.MULTILINE | re.DOTALL)
    commands = [line for block in blocks for line in block.splitlines()]
    assert sum(FEWER_PIXELS[0] in line for line in commands) == 2
    for line in commands:
        program, *argv = shlex.split(line.replace("~", str(home)).replace(*FEWER_PIXELS))
        assert program == "brainjanus" and cli.main(argv) == 0, line

    made = {path.parent.name: Dataset.open(path.parent) for path in (tmp_path / "data").glob("*/dataset.json")}
    assert made["nsd"].image_size == 8 and made["early"].space("subj02").num_sites == int((nsd.prf > 0).sum())
    for name in ("mindeye2", "mindeye1", "mindllm"):
        assert made[name].trials("subj01").stimuli("test") == made["mindeye2"].trials("subj01").stimuli("test")
    np.testing.assert_array_equal(made["again"].responses("subj01"), made["mindeye2"].responses("subj01"))
    assert made["recaptioned"].caption_sources == ("vlm", "coco")
    assert made["meg"].modality == "MEG" and made["pets"].subjects == ("sub-01",)
    assert made["arrays"].subjects == ("anna", "bert")


def test_the_recipe_for_pickles(project_root, tmp_path, monkeypatch):
    page = (project_root / "docs/guide/layouts.md").read_text(encoding="utf-8")
    (recipe,) = re.findall(r"^```python\n(.*?)^```$", page, flags=re.MULTILINE | re.DOTALL)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sub-01").mkdir()
    content = {"preprocessed_eeg_data": np.ones((2, 3, 4, 5)), "ch_names": ["Oz"], "times": np.arange(5.0)}
    np.save("sub-01/preprocessed_eeg_test.npy", content, allow_pickle=True)
    exec(compile(recipe, "layouts.md", "exec"), {})
    with np.load("sub-01/preprocessed_eeg_test.npz", allow_pickle=False) as made:
        assert {key: made[key].tolist() for key in made} == {k: np.array(v).tolist() for k, v in content.items()}
