"""The published rows against the tables as they are printed."""

import pytest

from cutslots.report.published import PAPER, ROWS, TABLE_1, differences, paper_row, records, rows

# Table 1 of the paper, cell by cell: mIoU, ARI-FG and MSE on CLEVR, ClevrTex, OOD and CAMO.
PRINTED = """\
SPAIR	65.95	77.13	55	0.0	0.00	1101	0.0	0.00	1166	0.0	0.0	668
SPACE	26.31	22.75	63	9.14	17.53	298	6.87	12.71	387	8.67	10.55	251
GNM	59.92	65.05	43	42.25	53.37	383	40.84	48.43	626	17.56	15.73	353
MN	56.81	72.12	75	10.46	38.31	335	12.13	37.29	409	8.79	31.52	265
DTI	48.74	89.54	77	33.79	79.90	438	32.55	73.67	590	27.54	72.90	377
Gen. V2	9.48	57.90	158	7.93	31.19	315	8.74	29.04	539	7.49	29.60	278
eMORL	21.98	93.25	26	30.17	45.00	347	25.03	43.13	546	19.53	42.34	315
MONet	30.66	54.47	58	19.78	36.66	146	19.30	32.97	231	10.52	12.44	112
IODINE	45.14	93.81	44	29.16	59.52	340	26.28	53.20	504	17.52	36.31	315
Slot Attention	36.61	95.89	23	22.58	62.40	254	20.98	58.45	487	19.83	57.54	215
Ours	49.04	95.40	14	42.4	80.2	207	38.0	72.6	577	38.9	75.5	189
"""
SETS = ("clevr", "clevrtex", "clevrtex_outd", "clevrtex_camo")


@pytest.mark.parametrize("line", PRINTED.splitlines(), ids=lambda line: line.split("\t")[0])
def test_table_1_is_carried_over(line):
    label, *cells = line.split("\t")
    found = {row.dataset: row for row in ROWS if row.source == f'{TABLE_1}, row "{label}"'}
    assert tuple(found) == SETS
    for at, name in enumerate(SETS):
        miou, ari_fg, mse = (float(cell) for cell in cells[3 * at : 3 * at + 3])
        row = found[name]
        assert (
            100 * row.scores["miou"],
            100 * row.scores["ari_fg"],
            row.scores["mse"],
        ) == pytest.approx((miou, ari_fg, mse))
        assert row.trained_on == ("clevr" if name == "clevr" else "clevrtex"), (
            "OOD and CAMO are for evaluation only"
        )


def test_the_other_figures():
    movi = {row.method: row.scores for row in rows("movi_a")}
    assert movi[PAPER] == {"video_ari_fg": 0.656, "video_ari": 0.777}
    assert movi["Slot Attention"] == {"video_ari_fg": 0.042, "video_ari": 0.003}
    assert movi["SAVi, unconditional"] == {"video_ari_fg": 0.703}
    cora = {row.method: (row.scores["mean"], row.spread["mean"]) for row in rows("cora")}
    assert cora["equality program (the paper)"] == (7.01, 1.15)
    assert cora["NN2-Decision"] == (6.15, 0.38)
    assert len(cora) == 7
    later = {(row.method, row.dataset): row for row in ROWS}
    assert later["Large AKOrN", "clevrtex_camo"].scores == {"ari_fg": 0.77}
    assert later["Large AKOrN", "clevrtex_camo"].spread == {"ari_fg": 0.005}
    assert later["AST-Seg-B3-CT", "clevr"].spread == {"ari_fg": 0.001, "miou": 0.002}
    assert later["min-cut slots, the authors' checkpoint", "clevrtex"].scores["ari"] == 0.5153


def test_every_row_says_where_it_is_from_and_how_it_was_made():
    assert all(row.source and row.protocol for row in ROWS)
    assert all(
        0 <= value <= 1
        for row in ROWS
        for score, value in row.scores.items()
        if score not in ("mse", "mean")
    )
    assert len({(row.method, row.dataset) for row in ROWS}) == len(ROWS)
    assert paper_row("clevrtex") in rows("clevrtex")
    assert paper_row("scenes") is None


def test_runs_are_named_as_ours_are():
    made = {record.name: record for record in records()}
    assert len({record.key for record in made.values()}) == len(made)
    tex = made["published: Slot Attention, clevrtex"]
    assert tex.metrics["clevrtex_camo/test/ari_fg"] == 0.5754
    assert tex.metrics["clevrtex/test/mse"] == 254
    assert tex.tags["model"] == "slot_attention"
    assert tex.tags["dataset"] == "clevrtex"
    assert tex.tags["published"] == "true"
    assert not any(name.startswith("best/") for record in made.values() for name in record.metrics)
    assert made["published: AST-Seg-B3-CT, clevr"].metrics["clevr/test/miou_spread"] == 0.002
    paper = made["published: equality program (the paper), cora"]
    assert paper.metrics == {"mean": 7.01, "interval_low": 5.86, "interval_high": 8.16}
    assert made[f"published: {PAPER}, movi_a"].metrics == {
        "movi_a/val/video_ari_fg": 0.656,
        "movi_a/val/video_ari": 0.777,
    }
    assert (
        sum(len(record.metrics) for record in made.values())
        == sum(len(r.scores) + len(r.spread) for r in ROWS) + 7
    )


def test_what_is_not_known_is_no_difference_and_what_differs_is_said():
    row = paper_row("clevrtex_camo")
    assert row is not None
    assert (
        differences(row, image_size=128, split="test", num_images=2000, trained_on="clevrtex") == []
    )
    assert differences(row, image_size=None, split="test", num_images=None, trained_on=None) == []
    assert differences(row, image_size=64, split="val", num_images=10, trained_on="clevr") == [
        "scored at 64 x 64, published at 128 x 128",
        "split val, published on test",
        "10 images, published on at least 1,000",
        "the model was trained on clevr",
    ]
    savi = next(row for row in ROWS if row.model == "savi")
    said = differences(savi, image_size=128, split="val", num_images=6000, trained_on="movi_a")
    assert said == list(savi.differs)
