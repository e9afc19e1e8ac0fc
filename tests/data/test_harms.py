"""One harm is one category, whatever a benchmark calls it, in suites, mixes and docs alike."""

from __future__ import annotations

from pathlib import Path

import pytest

from safevlm.data import harms
from safevlm.data.labels import LabelTable, read_labels
from safevlm.data.sources.row import SourceRow
from safevlm.files import read_yaml
from safevlm.taxonomy import CLEAN, DEFAULT

ROOT = Path(__file__).parents[2]
TABLES = ("safevlm/recipes/mix_safevlm.yaml", "safevlm/evaluation/suites/rtvlm.yaml")


def test_every_name_means_a_harm_and_every_harm_a_risky_category() -> None:
    table = harms.table()
    meant = {harm for names in table.names.values() for harm in names.values()} | {*table.words.values(), harms.OTHER}
    assert meant == set(table.harms), "no harm without a name, no name without a harm"
    assert set(table.harms.values()) == set(DEFAULT.category_names) - {CLEAN}
    plain = [name for names in (*table.names.values(), table.words) for name in names]
    assert all(name == " ".join(name.casefold().replace("_", " ").replace("-", " ").split()) for name in plain)


SAME = {
    "violence": [
        ("vlguard", "risky behavior", "violence"),
        ("vlsbench", "Violent"),
        ("jailbreakv", "Violence"),
        ("holisafe", "violence", "weapon_related_violence"),
        ("siuo", "violence"),
    ],
    "hate": [("vlsbench", "Hate"), ("figstep", "Hate Speech"), ("mm_safetybench", "HateSpeech"), ("holisafe", "hate")],
    "sexual": [
        ("vlguard", "risky behavior", "sexually explicit"),
        ("vlsbench", "Erotic"),
        ("mm_safetybench", "Sex"),
        ("figstep", "Adult Content"),
        ("spa_vl", "Toxicity Harms", "Adult Content"),
    ],
    "discrimination": [
        ("vlguard", "discrimination", "sex"),
        ("xstest", "contrast_discr"),
        ("jailbreakv", "Bias"),
        ("rtvlm", "racial"),
        ("siuo", "discrimination & stereotyping"),
    ],
    "privacy": [("vlguard", "privacy", "personal data"), ("xstest", "contrast_privacy"), ("vlsbench", "Privacy")],
    "advice": [
        ("vlguard", "deception", "professional advice"),
        ("mm_safetybench", "Legal_Opinion"),
        ("holisafe", "specialized_advice", "medical_advice"),
    ],
    "crime": [
        ("vlsbench", "Illegal Activity"),
        ("mm_safetybench", "Illegal_Activitiy"),
        ("xstest", "contrast_x"),
        ("x",),
    ],
    "self-harm": [("vlsbench", "Self-Harm"), ("siuo", "self-harm"), ("holisafe", "x", "physical_self_injury")],
}


@pytest.mark.parametrize("harm", SAME)
def test_the_same_harm_is_in_one_category_in_all_benchmarks(harm: str) -> None:
    assert len({harms.harm_of(*called) for called in SAME[harm]}) == 1, [harms.harm_of(*one) for one in SAME[harm]]


@pytest.mark.parametrize("table", TABLES)
def test_mixes_label_as_the_suites_do(table: str) -> None:
    labels = read_labels(read_yaml(ROOT / table)["labels"], DEFAULT, table)
    checked = 0
    for source in ("vlguard", "rtvlm"):
        for name in harms.table().names[source]:
            found = _category(labels, source, name)
            checked += found is not None
            assert found in (None, harms.category_of(source, name)), f"{table}: {source}/{name}"
    assert checked >= 10


def _category(labels: LabelTable, source: str, name: str) -> str | None:
    """None: no rule for it."""
    of_race = harms.table().names[source][name] == "discrimination"
    words = (name,) if source == "rtvlm" else ("discrimination" if of_race else "any", name)
    try:
        label = labels.label(source, SourceRow("1", "x:1", words=(*words, "any")))
    except LookupError:
        return None
    return label.category if label else None


def test_the_docs_show_the_table() -> None:
    text = (ROOT / "docs" / "data.md").read_text(encoding="utf-8")
    assert "\n".join(harms.markdown()) in text, "docs/data.md shows what `harms.markdown` gives"
