"""Model card and check lists: what the run knows is said, what it does not is left to fill in, nothing is guessed."""

import re
from dataclasses import replace

import numpy as np
import pytest

from anomaly.evaluation.figures import KindFigures
from anomaly.reporting.checklists import UNKNOWN, Item, gmlp, reporting_items, subgroups
from anomaly.reporting.context import ReportContext
from anomaly.reporting.model_card import render_model_card
from anomaly.reporting.page import render_report

from .test_report import EVIL, context, evaluation


def kind(auc: float | None = 0.7) -> KindFigures:
    return KindFigures(roc_auc=auc, roc_auc_interval=(0.6, 0.8), n=40, n_abnormal=10, n_patients=20, prevalence=0.25)


def with_figures(**changes: object) -> ReportContext:
    made = evaluation(synthetic=False)
    figures = made.figures.model_copy(update=changes)
    return context(evaluation=replace(made, figures=figures))


def answers(items: list[Item]) -> dict[str, str]:
    return {item.topic: str(item) for item in items}


def test_the_ten_principles_are_there_by_number() -> None:
    numbers = [int(item.topic.partition(".")[0]) for item in gmlp(context())]
    assert numbers == list(range(1, 11))


def test_every_item_is_answered_or_left_to_fill_in() -> None:
    for given in (context(), with_figures(), context(map_scale=None, wrong=[], failures=[], origin={}, versions={})):
        for item in [*gmlp(given), *reporting_items(given)]:
            assert item.whole != (UNKNOWN in str(item).lower()), item
            assert str(item) and "  " not in str(item)


@pytest.mark.parametrize("topic", ["Objective", "Prospective", "Removal of what identifies", "Registration", "Harm"])
def test_what_no_run_can_know_is_never_answered(topic: str) -> None:
    for given in (context(), with_figures()):
        (item,) = [item for item in reporting_items(given) if item.topic.startswith(topic)]
        assert str(item) == f"{UNKNOWN[0].upper()}{UNKNOWN[1:]}."


def test_labels_of_real_films_leave_their_readers_to_fill_in() -> None:
    drawn, real = (answers(reporting_items(given)) for given in (context(), with_figures()))
    topic = "Reference standard, and who set it"
    assert UNKNOWN not in drawn[topic] and UNKNOWN in real[topic]


def test_patients_that_are_not_known_are_said() -> None:
    given = with_figures(unknown_patients=7, films=60)
    assert "of 7 films they are not" in answers(gmlp(given))["4. Training data are independent of test data"]


def test_subgroups_are_those_of_the_figures() -> None:
    columns = {"sex": {"F": {"mse": kind(0.71)}, "M": {"mse": kind(0.66)}, "": {"other": kind()}}}
    given = with_figures(columns=columns)
    rows = [group.cells() for group in subgroups(given.figures)]
    assert [row[:3] for row in rows if row[0] == "sex"] == [
        ["sex", "F", ".710 [.600, .800]"],
        ["sex", "M", ".660 [.600, .800]"],
    ]
    assert {row[0] for row in rows} == {"finding", "sex"}
    assert "By sex in the table" in answers(reporting_items(given))["Who the patients are"]
    none = with_figures(columns={}, finding={}, difficulty={})
    assert subgroups(none.figures) == [] and "## Subgroups" not in render_model_card(none)


def test_a_column_that_only_sounds_like_one_of_patients_is_none() -> None:
    given = with_figures(columns={"image stage": {"a": {"mse": kind()}}})
    assert UNKNOWN in answers(reporting_items(given))["Who the patients are"]


def test_without_figures_nothing_is_claimed() -> None:
    given = context(evaluation=evaluation(labels=np.zeros(60, int)))
    answer = answers(reporting_items(given))
    assert answer["Performance with intervals"] == "None: there are no films of both labels."


def test_text_from_files_begins_no_tag_link_or_cell() -> None:
    link = "[x](http://evil) ![y](z) a|b `c`"
    columns = {link: {link: {"mse": kind()}}}
    given = replace(with_figures(columns=columns), data=f"{EVIL} {link}", title=link, about=EVIL)
    card = render_model_card(given)
    assert "<script" not in card and "<img" not in card
    assert not re.search(r"(?<!\\)[\[\]]", card)
    tables = [line for line in card.splitlines() if line.startswith("| ")]
    assert tables and {len(re.findall(r"(?<!\\)\|", line)) for line in tables} <= {3, 7}


def test_the_page_has_the_lists_and_the_card_as_well() -> None:
    page, card = render_report(context()), render_model_card(context())
    for words in ("Good machine learning practice", "STARD-AI", "CLAIM 2024", UNKNOWN):
        assert words in page and words in card.replace("\\", "")
    assert "<script>alert" not in page
