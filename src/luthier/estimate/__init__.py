"""What a run would need and how long it would take on other machines, by formulae: docs/reference/plan.md."""
