"""The arithmetic and the page of the training benchmark, on made-up measurements."""

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

FOLDER = Path("benchmarks/training").resolve()


def load(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(FOLDER))
    monkeypatch.delitem(sys.modules, "table", raising=False)  # other benchmarks have a file of that name
    spec = importlib.util.spec_from_file_location(f"training_{name}", FOLDER / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def trained(seconds_a_step: float, losses: list[float], memory: float = 1.0) -> dict[str, object]:
    """A training whose first two steps are slow."""
    num = len(losses)
    ends = [50.0, 100.0, *(100 + seconds_a_step * (i + 1) for i in range(num - 2))]
    return {
        "seconds": ends,
        "tokens": [100] * num,
        "losses": losses,
        "peak_memory_gib": memory,
        "first_step_s": 5.0,
        "engine": {},
    }


MODEL = {"layer_weights": 1000, "adapter_weights": 10, "head_weights": 400, "trained_share": 0.5}


def test_speed_leaves_the_first_two_steps_out_and_ratios_are_of_one_round(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = load("run", monkeypatch)
    # The machine was twice as slow in the second round: speeds differ, ratios do not.
    measured = {
        "prepare": [MODEL],
        "peak": [{"flops_per_s": 1e6}],
        "luthier": [trained(1.0, [3.0, 2.0, 1.0, 1.0], 2.0), trained(2.0, [3.0, 2.0, 1.0, 1.0], 2.5)],
        "luthier-fp32": [trained(4.0, [3.0, 2.0, 1.0, 1.2])],
        "trl": [trained(5.0, [3.0, 2.0, 1.0, 1.4]), trained(10.0, [3.0, 2.0, 1.0, 1.4])],
    }
    figures = run.figures(measured)
    assert figures["luthier/tokens_per_s"] == [75.0, 50.0, 100.0]
    assert figures["speed_vs_trl"] == [5.0, 5.0, 5.0]
    assert "speed_vs_hf_trainer" not in figures
    assert figures["peak_memory_gib"] == 2.5
    assert figures["bf16_loss_gap"] == pytest.approx(0.05)
    assert figures["trl/loss_gap"] == pytest.approx(0.1)
    # 4 x (1000 + 400 / 2) + 6 x 10 operations a token, 75 tokens/s, of 10^6 a second
    assert figures["matrix_peak_share"] == pytest.approx(4860 * 75 / 1e6, abs=1e-4)
    assert run.flops_per_token(MODEL, full=True) == 6 * 1200


def test_the_page_has_the_figures_that_were_measured_and_says_when_there_are_none(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    run, table = load("run", monkeypatch), load("table", monkeypatch)
    assert "Not measured yet" in table.page(tmp_path / "results.json")
    measured = {
        "luthier": [trained(1.0, [3.0, 2.0, 1.0, 1.0])],
        "trl": [trained(8.0, [3.0, 2.0, 1.0, 1.4])],
    }
    point = {"name": "256", "rows": 3, "parameters": 10, "tokens_per_step": 4096, "tokens_per_s": 321.0}
    results = {
        "figures": run.figures(measured),
        "losses": {name: runs[0]["losses"] for name, runs in measured.items()},
        "date": "2026-01-01",
        "notes": "",
        "settings": {
            "check_s/lora": 7,
            "num_tokens": 1000,
            "median": 10,
            "longest": 20,
            "trained_share": 0.5,
        },
        "step_parts": {"lora": {"matrix products": 0.6, "all other operations": 0.4}},
        "growth": {"length": [point | {"peak_memory_gib": 1.5, "prepare_s": 0.5}], "rows": [], "size": []},
        "versions": {"python": "3.11", "luthier: torch": "2.0", "trl: torch": "2.1"},
    }
    (tmp_path / "results.json").write_text(json.dumps(results))
    page = table.page(tmp_path / "results.json")
    for row in (
        "| Luthier | 100 (100 to 100) |  | 5 | 1.0 |  |",
        "| TRL SFTTrainer | 12 (12 to 12) | 8.0 (8.0 to 8.0) times | 5 | 1.0 | 0.1000 |",
        "| matrix products | 60.0% |",
        "| 256 | 4,096 | 321 | 1.5 |  | 0.5 |",
        "| torch | 2.0 | 2.1 |",
    ):
        assert row in page
    table.draw(results, tmp_path / "picture.png")
    assert (tmp_path / "picture.png").stat().st_size > 10_000
