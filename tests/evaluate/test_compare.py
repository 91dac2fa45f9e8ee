from dataclasses import replace

import pytest

from brainjanus.core.errors import UserError
from brainjanus.evaluate.compare import compare, load_published, table_of
from brainjanus.evaluate.metrics import METRICS
from brainjanus.evaluate.protocol import COMPARED, Protocol
from brainjanus.evaluate.record import DIRECTIONS, Record

PROTOCOL = Protocol("f" * 64, "r" * 64, "subj01", "test", "ids", "z-scored", "mean of 3 repeats", "Pearson's r")
FIRST = Record("image->brain", "nsd", "subj01", None, "mean", "voxel_r", 0.4, 0.0, 0.3, 0.6, 100, 0, protocol=PROTOCOL)
SECOND = replace(FIRST, value=0.5, interval=(0.4, 0.6))


def test_results_of_one_protocol_stand_side_by_side():
    other = replace(SECOND, metric="mse", value=0.1)
    (block,) = compare({"a": [FIRST], "b": [SECOND, other]}).blocks
    assert (block.direction, block.subject, block.roi) == ("image->brain", "subj01", None)
    assert [(row.system, row.values["voxel_r"].value) for row in block.rows] == [("a", 0.4), ("b", 0.5)]
    assert block.metrics == ["voxel_r", "mse"]
    assert "mse" not in block.rows[0].values  # what one system lacks is left empty


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"protocol": replace(PROTOCOL, stimuli="others")}, "stimuli is 'ids' in a and 'others' in b"),
        ({"protocol": replace(PROTOCOL, responses="raw")}, "responses is 'z-scored' in a and 'raw' in b"),
        ({"protocol": replace(PROTOCOL, repeats="single trials")}, "repeats is 'mean of 3 repeats' in a and 'single"),
        ({"protocol": replace(PROTOCOL, fingerprint="g")}, "fingerprint is 'f"),
        (
            {"protocol": replace(PROTOCOL, definition="Spearman")},
            "definition is 'Pearson's r' in a and 'Spear",
        ),
        ({"protocol": replace(PROTOCOL, split="val")}, "split is 'test' in a and 'val' in b"),
        ({"n": 99}, "n is '100' in a and '99' in b"),
        ({"estimator": "sample"}, "estimator is 'mean' in a and 'sample' in b"),
    ],
)
def test_a_difference_is_named_and_refused_unless_it_is_allowed(changed, told):
    other = replace(SECOND, **changed)
    with pytest.raises(UserError, match="expected results of one protocol") as refusal:
        compare({"a": [FIRST], "b": [other]})
    assert told in str(refusal.value)
    field = told.split()[0]
    assert f"--allow {field}" in str(refusal.value)
    comparison = compare({"a": [FIRST], "b": [other]}, allow=[field])
    assert len(comparison.blocks[0].rows) == 2
    assert any(field in note for note in comparison.notes)


def test_a_difference_in_any_pair_of_three_is_found():
    with pytest.raises(UserError, match="in a and 'raw' in c"):
        compare({"a": [FIRST], "b": [SECOND], "c": [replace(FIRST, protocol=replace(PROTOCOL, responses="raw"))]})


def test_what_a_maker_of_predictions_did_not_declare_is_no_difference():
    other = replace(SECOND, estimator="undeclared", protocol=replace(PROTOCOL, repeats="undeclared"))
    assert len(compare({"a": [FIRST], "b": [other]}).blocks[0].rows) == 2


def test_several_estimators_are_several_rows():
    sample = replace(FIRST, estimator="sample", value=0.2)
    rows = compare({"a": [FIRST, sample], "b": [SECOND]}).blocks[0].rows
    assert [(row.system, row.estimator) for row in rows] == [("a", "mean"), ("a", "sample"), ("b", "mean")]


def test_regions_are_compared_when_asked_for():
    regions = [replace(record, roi="V1") for record in (FIRST, SECOND)]
    systems = {"a": [FIRST, regions[0]], "b": [SECOND, regions[1]]}
    assert [block.roi for block in compare(systems).blocks] == [None]
    assert [block.roi for block in compare(systems, rois=True).blocks] == [None, "V1"]


def test_nothing_in_common_is_said():
    other = replace(FIRST, direction="brain->text", metric="cider")
    with pytest.raises(UserError, match="got none: a has image->brain for subj01; b has brain->text for subj01"):
        compare({"a": [FIRST], "b": [other]})
    with pytest.raises(UserError, match="expected at least two results, got 1"):
        compare({"a": [FIRST]})
    with pytest.raises(UserError, match=r"--allow: expected some of .* got 'colour'"):
        compare({"a": [FIRST], "b": [SECOND]}, allow=["colour"])


def test_the_flat_table_has_a_row_for_each_figure():
    rows = table_of(compare({"a": [FIRST], "b": [SECOND]}))
    assert [(r["system"], r["metric"], r["value"], r["low"], r["n"]) for r in rows] == [
        ("a", "voxel_r", 0.4, None, 100),
        ("b", "voxel_r", 0.5, 0.4, 100),
    ]
    assert rows[0]["protocol"] == PROTOCOL.id


# --- published figures ----------------------------------------------------------------------------------------------

NSD = replace(
    FIRST,
    direction="brain->image",
    metric="pixcorr",
    n=1000,
    protocol=replace(PROTOCOL, repeats="outputs averaged over repeats"),
)


def test_quoted_figures_stand_beside_and_are_marked():
    comparison = compare({"ours": [NSD]}, published="NSD")
    ours, *quoted = comparison.blocks[0].rows
    assert not ours.quoted
    assert {row.system for row in quoted} == {"MindEye2, 40 h", "MindEye2, 1 h"}
    assert all((row.quoted and "Scotti" in row.note) or "SynBrain" in row.note for row in quoted)
    assert quoted[0].values["pixcorr"].value == 0.374
    assert "not scored here" in comparison.notes[0]


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"n": 982}, "n '982' here, '1000' there"),
        ({"protocol": PROTOCOL}, "repeats 'mean of 3 repeats' here, 'outputs averaged over repeats' there"),
    ],
)
def test_quoted_figures_of_another_protocol_are_left_out_with_the_reason(changed, told):
    comparison = compare({"ours": [replace(NSD, **changed)]}, published="NSD")
    assert len(comparison.blocks[0].rows) == 1
    assert any(told in note for note in comparison.notes)


def test_another_subject_or_collection_quotes_nothing():
    assert len(compare({"ours": [replace(NSD, subject="subj02")]}, published="NSD").blocks[0].rows) == 1
    with pytest.raises(UserError, match="--published: expected one of NSD, got 'CIFAR'"):
        compare({"ours": [NSD]}, published="CIFAR")


def test_the_shipped_file_is_sound():
    entries = load_published()
    assert len(entries) >= 10
    for entry in entries:
        assert entry.direction in DIRECTIONS
        assert entry.source
        assert set(entry.protocol) <= set(COMPARED)
        for metric, value in entry.values.items():
            assert metric in METRICS or metric.startswith(("retrieval:", "pearson"))
            assert 0 < value < 1.0  # fractions, not percentages
    umbrae = next(entry for entry in entries if entry.system == "UMBRAE")
    assert umbrae.values["cider"] == 0.6106
    assert umbrae.n == 982


# --- what two figures side by side must share ------------------------------------------------------------------------


def test_every_pair_is_looked_at():
    """Not only against the first, not only metrics that all have, not only the first estimator or dataset."""
    raw = replace(SECOND, protocol=replace(PROTOCOL, responses="raw"))
    silent = replace(FIRST, protocol=replace(PROTOCOL, responses="undeclared"))
    with pytest.raises(UserError, match="in b and 'raw' in c"):
        compare({"a": [silent], "b": [FIRST], "c": [raw]})
    with pytest.raises(UserError, match="responses is 'z-scored' in a and 'raw' in b"):  # c has another metric only
        compare({"a": [FIRST], "b": [raw], "c": [replace(FIRST, metric="mse")]})
    with pytest.raises(UserError, match="responses is"):  # the second estimator
        compare({"a": [FIRST], "b": [SECOND, replace(raw, estimator="sample")]})


def test_the_padding_control_is_no_common_estimator():
    control = replace(FIRST, estimator="padding control")
    with pytest.raises(UserError, match="estimator is 'mean' in a and 'sample' in b"):
        compare({"a": [FIRST, control], "b": [replace(SECOND, estimator="sample"), control]})


def test_folds_are_compared_one_by_one():
    folds = [replace(FIRST, dataset=f"fold{i}", protocol=replace(PROTOCOL, fingerprint=str(i))) for i in range(2)]
    assert len(compare({"a": folds, "b": folds}).blocks) == 2
    with pytest.raises(UserError, match="got none"):
        compare({"a": folds, "b": [replace(FIRST, dataset="other")]})


def test_means_over_other_subjects_are_refused():
    means = [replace(FIRST, subject="mean", protocol=replace(PROTOCOL, subjects=who)) for who in ("s1, s2", "s3, s4")]
    with pytest.raises(UserError, match="subjects is 's1, s2' in a and 's3, s4' in b"):
        compare({"a": means[:1], "b": means[1:]})


def test_a_subject_that_was_not_declared_is_the_only_one_there_is():
    silent = replace(SECOND, subject="undeclared", protocol=replace(PROTOCOL, subjects="undeclared"))
    (block,) = compare({"a": [FIRST], "b": [silent]}).blocks
    assert block.subject == "subj01"
    with pytest.raises(UserError, match="got none"):
        compare({"a": [FIRST, replace(FIRST, subject="subj02")], "b": [silent]})


def test_silence_is_told():
    silent = replace(SECOND, estimator="undeclared", protocol=replace(PROTOCOL, repeats="undeclared"))
    (note,) = compare({"a": [FIRST], "b": [silent]}).notes
    assert note == "image->brain: not declared: repeats of b, estimator of b"


def test_figures_of_a_collection_are_quoted_beside_its_data_alone():
    other = replace(NSD, dataset="simulated cortex")
    comparison = compare({"ours": [other]}, published="NSD")
    assert len(comparison.blocks[0].rows) == 1
    assert any("dataset 'simulated cortex' here, 'NSD' there" in note for note in comparison.notes)
    assert len(compare({"ours": [other]}, published="NSD", allow=["dataset"]).blocks[0].rows) == 3
    assert len(compare({"ours": [replace(NSD, dataset="my_nsd_subj01")]}, published="NSD").blocks[0].rows) == 3
    assert len(compare({"ours": [replace(NSD, dataset="lansdowne")]}, published="NSD").blocks[0].rows) == 1
