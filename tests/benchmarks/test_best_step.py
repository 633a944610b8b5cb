"""The page on the best step, from invented runs whose outcome is known."""

from benchmarks import best_step


def rows(previews, exhaustive, verdicts):
    chosen = previews.index(max(previews))
    return [
        {"step": 50 * (i + 1), "chosen": i == chosen, "previews": p, "exhaustive": e, "verdicts": v}
        for i, (p, e, v) in enumerate(zip(previews, exhaustive, verdicts, strict=True))
    ]


def test_a_chosen_step_is_compared_with_the_best(tmp_path, monkeypatch):
    monkeypatch.setattr(best_step, "DOCS", tmp_path)
    runs = {
        (8e-5, 0): rows([0.2, 0.6, 0.5], [0.3, 0.58, 0.6], [0.1, 0.7, 0.8]),
        (2e-4, 0): rows([0.9, 0.6, 0.5], [0.3, 0.58, 0.6], [0.1, 0.7, 0.8]),
    }
    best_step.write_page(runs, [(10.0, 11.0), (10.0, 12.0)], "Real sizes.")
    page = (tmp_path / "best-step.md").read_text("utf-8")
    # 0.58 is 97 % of 0.6, and 0.3 is half of it.
    assert "**The chosen step is within 5% of the best in 1 of 2 runs**" in page
    assert "| 8e-05 | 0 | 100 | 150 | 0.58 | 0.60 | 0.70 | 0.80 | 97% |" in page
    assert "| 0.0002 | 0 | 50 | 150 | 0.30 | 0.60 | 0.10 | 0.80 | 50% |" in page
    assert "15.0% longer than without previews (10.0% to 20.0%, 2 pairs" in page
    assert page.endswith("Real sizes.\n")
    assert (tmp_path / "best-step.png").stat().st_size > 10_000
