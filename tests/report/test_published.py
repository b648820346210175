"""The published rows against the tables as they are printed."""

from typing import Any

import pytest

from cutslots.report.published import PAPER, ROWS, differences, records, rows

# Table 1 of the paper: mIoU, ARI-FG and MSE on CLEVR, ClevrTex, OOD and CAMO.
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
DATASETS = ("clevr", "clevrtex", "clevrtex_outd", "clevrtex_camo")


@pytest.mark.parametrize("line", PRINTED.splitlines(), ids=lambda line: line.split("\t")[0])
def test_table_1_is_as_printed(line):
    label, *cells = line.split("\t")
    source = f'Pervez et al. 2023, Table 1, row "{label}"'
    by_dataset = {row.dataset: row for row in ROWS if row.source == source}
    assert tuple(by_dataset) == DATASETS
    for i, (dataset, row) in enumerate(by_dataset.items()):
        miou, ari_fg, mse = (float(cell) for cell in cells[3 * i : 3 * i + 3])
        # Very probably the baselines are scored without the background, the paper's row with it.
        kind, other = ("miou", "miou_fg") if label == "Ours" else ("miou_fg", "miou")
        assert other not in row.scores
        assert ("mIoU with the" in row.protocol) == (label == "Ours")
        scores = 100 * row.scores[kind], 100 * row.scores["ari_fg"], row.scores["mse"]
        assert scores == pytest.approx((miou, ari_fg, mse))
        assert row.trained_on == ("clevr" if dataset == "clevr" else "clevrtex")


def test_the_other_rows_are_as_printed():
    movi = {row.method: row.scores for row in rows("movi_a")}
    assert movi[PAPER] == {"video_ari_fg": 0.656, "video_ari": 0.777}
    assert movi["Slot Attention"] == {"video_ari_fg": 0.042, "video_ari": 0.003}
    assert movi["SAVi, unconditional"] == {"video_ari_fg": 0.703}
    cora = {row.method: (row.scores["mean"], row.spread["mean"]) for row in rows("cora")}
    assert cora["equality program (the paper)"] == (7.01, 1.15)
    assert cora["NN2-Decision"] == (6.15, 0.38)
    later = {(row.method, row.dataset): row for row in ROWS}
    assert later["Large AKOrN", "clevrtex_camo"].scores == {"ari_fg": 0.77}
    assert later["ISA-TS", "clevrtex"].scores == {"ari_fg": 0.929}
    assert later["ISA-TS", "clevrtex_outd"].scores == {"ari_fg": 0.844}
    assert later["Large AKOrN", "clevrtex_outd"].scores == {"ari_fg": 0.877}
    for method, dataset, fact in (
        ("ISA-TS", "clevrtex", "quoted"),
        ("AST-Seg-B3-CT", "clevr", "ImageNet"),
        ("SAVi, unconditional", "movi_a", "optical flow at 64 x 64"),
    ):
        assert fact in later[method, dataset].differs[0]
    assert later["AST-Seg-B3-CT", "clevr"].spread == {"ari_fg": 0.001, "miou": 0.002}
    assert later["min-cut slots, the authors' checkpoint", "clevrtex"].scores["ari"] == 0.5153
    assert len(later) == len(ROWS) == 61
    for row in ROWS:
        assert row.source
        assert row.protocol
        assert all(0 <= v <= 1 for n, v in row.scores.items() if n not in ("mse", "mean"))


def test_records_have_the_names_of_our_runs():
    by_name = {record.name: record for record in records()}
    assert len({record.key for record in by_name.values()}) == len(by_name)
    tex = by_name["published: Slot Attention, clevrtex"]
    assert tex.key == "published-slot_attention-clevrtex"
    assert tex.metrics["clevrtex_camo/test/ari_fg"] == 0.5754
    assert tex.metrics["clevrtex/test/mse"] == 254
    assert (tex.tags["model"], tex.tags["dataset"]) == ("slot_attention", "clevrtex")
    assert tex.tags["published"] == "true"
    assert by_name["published: AST-Seg-B3-CT, clevr"].metrics["clevr/test/miou_spread"] == 0.002
    cora = by_name["published: equality program (the paper), cora"].metrics
    assert cora == {"mean": 7.01, "interval_low": 5.86, "interval_high": 8.16}
    movi = by_name[f"published: {PAPER}, movi_a"].metrics
    assert movi == {"movi_a/val/video_ari_fg": 0.656, "movi_a/val/video_ari": 0.777}
    logged = sum(len(record.metrics) for record in by_name.values())
    assert logged == sum(len(row.scores) + len(row.spread) for row in ROWS) + 7


def test_unknown_facts_are_not_differences():
    row = next(row for row in rows("clevrtex_camo") if row.method == PAPER)
    ours: dict[str, Any] = {"image_size": 128, "split": "test", "trained_on": "clevrtex"}
    ours["num_images"] = 2000
    assert differences(row, **ours) == []
    unknown: dict[str, Any] = dict.fromkeys(ours) | {"split": "test"}
    assert differences(row, **unknown) == []
    other = ours | {"image_size": 64, "split": "val", "num_images": 10, "trained_on": "clevr"}
    assert len(differences(row, **other)) == 4
    savi = next(row for row in ROWS if row.model == "savi")  # whose split is not stated
    ours |= {"split": "val", "trained_on": "movi_a"}
    assert differences(savi, **ours) == []
