"""What is done in a room leaves no trace."""

from types import SimpleNamespace

import torch

from luthier.check.as_before import attributes_as_before, unchanged


def test_model_is_unchanged_in_values_formats_gradients_and_training():
    model = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.BatchNorm1d(3))
    model[0].bias.requires_grad_(False)
    model[0].weight.grad = torch.ones(3, 3)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with unchanged(model):
        model.train()
        model(torch.randn(4, 3)).sum().backward()  # moves the statistics of the norm as well
        model.requires_grad_(True)
        with torch.no_grad():
            model[0].weight.fill_(torch.nan)
        model[1].weight.data = model[1].weight.data.half()
    after = model.state_dict()
    assert all(
        torch.equal(after[name], value) and after[name].dtype == value.dtype for name, value in before.items()
    )
    assert torch.equal(model[0].weight.grad, torch.ones(3, 3)) and model[1].weight.grad is None
    assert [p.requires_grad for p in model.parameters()] == [True, False, True, True]


def test_containers_are_refilled_and_not_replaced():
    names, sizes = ["a"], {"b": 1}
    thing = SimpleNamespace(names=names, sizes=sizes, kinds={3}, count=1)
    with attributes_as_before([thing]):
        names.clear()
        thing.sizes = {}
        sizes["c"] = 2
        thing.kinds.add(4)
        thing.count, thing.more = 2, True
    assert thing.names is names == ["a"] and thing.sizes is sizes == {"b": 1}
    assert vars(thing) == {"names": ["a"], "sizes": {"b": 1}, "kinds": {3}, "count": 1}
