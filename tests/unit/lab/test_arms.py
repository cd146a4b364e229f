"""The paper's tables as data: what they name exists, and the printed numbers are all there."""

from ullsam.lab.arms import ARMS, GRIDS, OURS, QUESTION_TYPES, QUESTIONS, TABLES


def test_every_claim_and_arm_of_the_tables_exists():
    for table in TABLES.values():
        labels = [row.label for row in table.rows]
        assert len(set(labels)) == len(labels) and {x for c in table.claims for x in (c.better, c.worse)} <= set(labels)
    assert set(ARMS) == {row.arm for table in TABLES.values() for row in table.rows}
    assert set(GRIDS) < set(TABLES) and not any(TABLES[name].claims for name in GRIDS)


def test_the_papers_numbers_are_all_there():
    papers = [row.paper for table in TABLES.values() for row in table.rows if row.paper]
    assert len(papers) == 17 and papers.count(OURS) == 5  # as printed in the paper's tables 1 to 5
    assert all(len(values) == len(QUESTION_TYPES) for values in QUESTIONS.values())


def test_rows_that_are_asked_alike_have_one_key():
    best = [row.key for name in ("table3", "table4", "table5", "fig5") for row in TABLES[name].rows if row.paper == OURS]
    assert len(set(best)) == 1 and best[0] != TABLES["fig6"].rows[-1].key
