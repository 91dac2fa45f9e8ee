"""The options of `prepare`: a spec and flags say the same, and all problems are told at once."""

import pytest
import tyro

from brainjanus.core.errors import UserError
from brainjanus.data.spec import PrepareConfig, SubjectFiles


def load(folder, text):
    (folder / "spec.toml").write_text(text)
    return PrepareConfig.load(folder / "spec.toml")


def test_a_spec_and_flags_make_the_same_config(tmp_path):
    spec = load(
        tmp_path, 'responses = "/d/a.npy"\ntrials = "in-order"\npictures = ["x=/d/p.zip"]\nscale = 300\nseed = 3'
    )
    flags = [
        "--responses",
        "/d/a.npy",
        "--trials",
        "in-order",
        "--pictures",
        "x=/d/p.zip",
        "--scale",
        "300",
        "--seed",
        "3",
    ]
    assert spec == tyro.cli(PrepareConfig, args=flags)
    assert spec.each_subject() == (SubjectFiles(responses=("/d/a.npy",), trials="in-order", scale=300.0),)


def test_subjects_take_what_they_do_not_set_from_the_top(tmp_path):
    config = load(
        tmp_path,
        'trials = "in-order"\nscale = 300\npictures = "p.zip"\n'
        '[[subjects]]\nsubject = "a"\nresponses = "a.npy"\n'
        '[[subjects]]\nsubject = "b"\nresponses = "b.npy"\nscale = 1.0',
    )
    assert [(who.subject, who.trials, who.scale) for who in config.each_subject()] == [
        ("a", "in-order", 300),
        ("b", "in-order", 1),
    ]


def test_paths_are_relative_to_the_spec_or_to_a_variable(tmp_path, monkeypatch):
    monkeypatch.setenv("RECORDINGS", "/rec")
    config = load(
        tmp_path,
        'responses = ["r.npy", "$RECORDINGS/b.mat:x.y"]\ntrials = "t.tsv"\npictures = "run1/=p.zip"\n'
        'features = "deep=run1/=$RECORDINGS/f.npz"',
    )
    assert config.responses == (f"{tmp_path}/r.npy", "/rec/b.mat:x.y")
    assert config.trials == f"{tmp_path}/t.tsv"
    assert config.pictures == (f"run1/={tmp_path}/p.zip",)
    assert config.features == ("deep=run1/=/rec/f.npz",)


def test_all_problems_of_a_spec_are_listed(tmp_path, monkeypatch):
    monkeypatch.delenv("NOT_SET", raising=False)
    with pytest.raises(UserError) as refused:
        load(
            tmp_path,
            'respones = "r.npy"\nimage_size = "64"\nzscore = "run"\nseed = true\npictures = "$NOT_SET/p.zip"\n'
            '[[subjects]]\nname = "a"',
        )
    for problem in (
        "respones is no option (these are: captions,",
        "image_size is '64', not <class 'int'>",
        "zscore is 'run', not 'session' or 'all' or 'none'",
        "seed is True",
        "the environment variable NOT_SET is not set",
        "subjects[1].name is no option",
        "subjects[1].subject is missing",
        "got 7 problems",
    ):
        assert problem in str(refused.value)


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"responses": ()}, "subj01: no responses"),
        ({"trials": ""}, "subj01: no trials"),
        ({"pictures": (), "captions": "c.json", "trials": "in-order"}, 'trials "in-order" without pictures'),
        ({"pictures": ()}, "no pictures, captions or features"),
        ({"responses": ("b.nii.gz",)}, "NIfTI responses need a mask"),
        ({"mask": "m.nii", "coordinates": "c.tsv"}, "coordinates beside a mask"),
        ({"scale": 0.0}, "scale 0.0"),
        ({"image_size": 0}, "image_size 0"),
        ({"test_fraction": 0.6, "val_fraction": 0.4}, "leave no training"),
        ({"features": ("f.npz",)}, "features without a name"),
        ({"subjects": (SubjectFiles("a"), SubjectFiles("a"))}, "a: given twice"),
        ({"subjects": (SubjectFiles("a"),)}, "responses has no effect beside `subjects`"),
    ],
)
def test_options_that_do_not_fit_together(options, problem):
    sound = {"responses": ("r.npy",), "trials": "t.tsv", "pictures": ("p.zip",)}
    with pytest.raises(UserError) as refused:
        PrepareConfig(**sound | options)
    assert problem in str(refused.value)


def test_a_spec_that_is_no_toml(tmp_path):
    with pytest.raises(UserError, match="expected a TOML spec, got"):
        load(tmp_path, "responses = ")
    with pytest.raises(UserError, match=r"expected a TOML spec, got .*No such file"):
        PrepareConfig.load(tmp_path / "nowhere.toml")
