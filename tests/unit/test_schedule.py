import pytest

from luthier.recipe import Train
from luthier.schedule import learning_rate, num_warmup_steps, total_steps


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
@pytest.mark.parametrize("warmup_steps", [0, 1, 5, 20])
@pytest.mark.parametrize("steps", [1, 2, 7, 20])
def test_peak_is_reached_by_every_run_that_is_no_shorter_than_its_warmup(
    schedule: str, warmup_steps: int, steps: int
) -> None:
    settings = Train(learning_rate=3e-4, schedule=schedule, warmup_steps=warmup_steps)
    rates = [learning_rate(step, steps, settings) for step in range(1, steps + 1)]
    assert max(rates) == pytest.approx(3e-4 * min(1, steps / max(1, warmup_steps)))


def test_schedule_rises_to_the_last_warmup_step_and_ends_at_its_share() -> None:
    settings = Train(learning_rate=1.0, schedule="linear", warmup_steps=4, final_learning_rate_share=0.1)
    rates = [learning_rate(step, 10, settings) for step in range(1, 11)]
    assert rates[:4] == [0.25, 0.5, 0.75, 1.0]
    assert rates[6] == pytest.approx(0.55)
    assert rates[-1] == pytest.approx(0.1)


def test_steps_are_epochs_or_the_limit() -> None:
    assert total_steps(Train(epochs=2.5, batch_size=8), 100, 5_000) == 31
    assert total_steps(Train(epochs=2.5, batch_size=8, max_steps=7), 100, 5_000) == 7
    assert total_steps(Train(epochs=2.5, batch_size=8, max_tokens=4_000), 100, 5_000) == 10
    assert total_steps(Train(epochs=2.5, batch_size=8, max_tokens=4_000, max_steps=7), 100, 5_000) == 7
    assert total_steps(Train(epochs=2.5, batch_size=8, max_tokens=1), 100, 5_000) == 1
    assert num_warmup_steps(Train(warmup_share=0.1), 50) == 5
