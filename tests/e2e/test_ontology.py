"""From documents to a scored, pruned DAG with one command, on the tiny model and a tiny sentence encoder."""

import json
import random
import shutil
from itertools import pairwise
from pathlib import Path
from typing import Any

import networkx as nx
import numpy as np
import pytest
from tests.fixtures.tiny_encoder import write_encoder
from tests.fixtures.tiny_run import write_recipe

from luthier import pipeline
from luthier.errors import UserError
from luthier.evaluate import ontology as stage
from luthier.recipe import GraphEvaluation, Options
from luthier.rows import Rows
from luthier.run_folder import read_json, read_jsonl
from luthier.sources.paths import Paths
from luthier.tasks.ontology import Ontology

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated")


def write_documents(path: Path, num_documents: int = 60) -> Path:
    """Documents below eight topics, the first of which is far more frequent than the others."""
    draw = random.Random(0)
    lines = []
    for number in range(num_documents):
        topics = {0, draw.randrange(8)}
        paths = [["Top", f"topic{t}", f"topic{t} part{draw.randrange(3)}"] for t in sorted(topics)]
        words = " ".join(f"{draw.choice('abcdefgh')}{draw.randrange(999)}" for _ in range(6))
        lines.append({"id": f"d{number}", "title": f"t{number}", "abstract": words, "paths": paths})
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ontology")
    documents = write_documents(folder / "documents.jsonl")
    (folder / "code").mkdir()  # no code is needed
    return write_recipe(
        folder,
        task={"type": "ontology", "root": "Top", "format": "plain"},
        data={
            "source": {"type": "paths", "path": str(documents)},
            "max_length": 200,
            "near_duplicates": "off",
        },
        train={"max_steps": 8, "eval_every_steps": 8, "keep_checkpoints": 5, "learning_rate": 1e-2},
        evaluate={
            "generate": False,
            "max_new_tokens": 24,
            "batch_size": 4,
            "ontology": {
                "constrain": "nodes",
                "temperature": 0.7,
                "baselines": ["memorisation", "hearst", "1-shot"],
                "embedding_model": str(write_encoder(folder / "encoder")),
            },
        },
    )


READ: set[tuple[type, str]] = set()


@pytest.fixture(scope="module")
def place(recipe: Path):
    usual = Options.__getattribute__

    def recording(self: Options, name: str) -> Any:
        if name in type(self).model_fields:
            READ.add((type(self), name))
        return usual(self, name)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Options, "__getattribute__", recording)
        return pipeline.run(recipe, folder=recipe.parent / "run")


def test_every_option_is_read(place) -> None:
    assert [
        f"{section.__name__}.{name}"
        for section in (GraphEvaluation, Ontology, Paths)
        for name in section.model_fields
        if (section, name) not in READ
        and name not in ("bad_titles", "part_seed")  # of bad titles, and of parts
    ] == []


def test_a_scored_dag_with_provenance_comes_out(place) -> None:
    scores = read_json(place.ontology / "scores.json")
    assert set(scores["systems"]) == {"tuned", "memorisation", "hearst", "1-shot"}
    for system, judged in scores["systems"].items():
        assert set(judged["scores"]) == {"literal", "fuzzy", "continuous", "graph", "motif"}
        graph = nx.node_link_graph(read_json(place.ontology / system / "ontology.json"), edges="links")
        assert nx.is_directed_acyclic_graph(graph) and judged["pruned"]["num_cycles"] == 0
        assert judged["pruned"]["num_unreachable"] == judged["pruned"]["num_orphans"] == 0
    tuned = read_json(place.ontology / "tuned" / "ontology.json")
    test_ids = {row.id for row in Rows(place.rows("test"))}
    links = [link for link in tuned["links"] if not link["attached"]]
    assert links
    for link in links:
        assert link["weight"] == len(link["documents"]) and set(link["documents"]) <= test_ids
        assert link["log_probability"] < 0
    assert scores["systems"]["tuned"]["written"]["test"]["documents_per_s"] > 0
    assert len(read_json(place.ontology / "tuned-sweep.json", list)) == 441
    assert scores["embedding_sha256"] and scores["threshold"] == 0.436
    memorised = scores["systems"]["memorisation"]["unpruned_scores"]["literal"]
    assert memorised["recall"] > 0.6  # the splits share their topics


def test_masks_in_training_follow_the_formula(place) -> None:
    masks = read_json(place.ontology / "scores.json")["masks"]
    rows = list(Rows(place.rows("train")))
    counts: dict[tuple[str, ...], int] = {}
    for row in rows:
        for path in row.meta["paths"]:
            for edge in pairwise(path):
                counts[edge] = counts.get(edge, 0) + 1
    mean = sum(counts.values()) / len(counts)
    assert masks["mean_count"] == pytest.approx(mean)
    assert {tuple(e["edge"]): e["count"] for e in masks["edges"]} == counts
    for edge in masks["edges"]:
        assert edge["probability"] == pytest.approx(max(0, 1 - mean / edge["count"]))
        assert edge["masked"] == 0 or edge["probability"] > 0
    assert sum(e["drawn"] for e in masks["edges"]) == sum(
        sum(len(path) - 1 for path in rows[i].meta["paths"]) for i in stage.shuffled(0, 32, len(rows), 0)
    )
    # What the history says was trained is what these draws leave over.
    trained = read_jsonl(place.history)[-1]["trained_tokens"]
    indices = stage.shuffled(0, 32, len(rows), 0)
    reweigh = pipeline.recipes.build("task", pipeline.read(place.recipe).task).epoch_weights(
        Rows(place.rows("train")), 0
    )
    expected = sum(
        np.count_nonzero(reweigh(rows[i], k // len(rows)).loss_weights) for k, i in enumerate(indices)
    )
    assert trained == expected < sum(np.count_nonzero(rows[i].loss_weights) for i in indices)


def test_a_resumed_run_draws_the_same_masks(place, recipe: Path, tmp_path: Path) -> None:
    other = shutil.copytree(place.path, tmp_path / "run")
    for gone in ("adapter", "checkpoints/step-8", "checkpoints/step-6"):
        shutil.rmtree(other / gone, ignore_errors=True)
    assert (other / "checkpoints").is_dir() and not (other / "adapter").exists()
    before = [line for line in read_jsonl(place.history) if line["step"]]
    assert any((other / "checkpoints").glob("step-*"))
    pipeline.train(recipe, folder=other)
    after = [line for line in read_jsonl(other / "history.jsonl") if line["step"]]
    for name in ("loss", "trained_tokens", "gradient_norm"):
        assert [line[name] for line in after] == [line[name] for line in before]
    weights = "adapter/adapter_model.safetensors"
    assert (other / weights).read_bytes() == (place.path / weights).read_bytes()


def test_what_was_written_is_not_written_again(place, recipe: Path) -> None:
    file = place.ontology / "tuned-test.jsonl"
    whole = file.read_text()
    before = read_json(place.ontology / "scores.json")["systems"]["tuned"]
    lines = whole.splitlines(keepends=True)
    kept = json.loads(lines[0]) | {"seconds": 123.0}
    file.write_text(json.dumps(kept) + "\n" + lines[1][:20])  # killed in the middle of a line
    (place.ontology / "scores.json").unlink()
    pipeline.evaluate(recipe, folder=place.path)
    again = {line["id"]: line for line in read_jsonl(file)}
    assert again[kept["id"]]["seconds"] == 123.0  # taken as it was
    assert {i: line["output"] for i, line in again.items()} == {
        line["id"]: line["output"] for line in map(json.loads, lines)
    }
    after = read_json(place.ontology / "scores.json")["systems"]["tuned"]
    assert after["scores"] == before["scores"] and after["pruned"] == before["pruned"]


def test_edge_losses_cover_every_node_once(place) -> None:
    losses = read_json(place.ontology / "scores.json")["edge_losses"]
    for split in ("train", "test"):
        rows = Rows(place.rows(split))
        num_nodes = sum(len(path) - 1 for row in rows for path in row.meta["paths"])
        for which in ("base", "tuned"):
            kinds = losses[split][which]
            assert sum(entry["num_edges"] for entry in kinds.values()) == num_nodes
            assert all(entry["nats"] > 0 for entry in kinds.values())
            assert split == "test" or set(kinds) == {"head", "tail"}
            total = sum(entry["num_edges"] * entry["nats"] for entry in kinds.values())
            if split == "test":  # less than the loss of the whole response
                scored = sum(line[which]["loss_nats"] for line in read_jsonl(place.predictions))
                assert 0.3 * scored < total < scored


def test_a_document_of_two_parts_is_in_the_test_split_alone(recipe: Path, tmp_path: Path) -> None:
    path = str(recipe.parent / "documents.jsonl")
    parts = {
        name: {"type": "paths", "path": path, "part": part, "part_seed": 1}
        for name, part in (("source", "train"), ("eval_source", "eval"), ("test_source", "test"))
    }
    tree = pipeline.read(recipe).model_dump(mode="json")
    tree["data"] |= parts | {"splits": {"train": 1.0, "eval": 0.0, "test": 0.0}}
    made = pipeline.prepare(tree, folder=tmp_path / "run")
    names: dict[str, set[str]] = {}
    tops: dict[str, set[str]] = {}
    for split in ("train", "eval", "test"):
        rows = list(Rows(made.rows(split)))
        names[split] = {row.meta["title"] for row in rows}
        tops[split] = {way[1] for row in rows for way in row.meta["paths"]}
    for one, other in (("train", "eval"), ("train", "test"), ("eval", "test")):
        assert names[one] and not names[one] & names[other] and not tops[one] & tops[other]
    dropped = read_json(made.ledger)["records"]["dropped"]
    assert dropped["exact-duplicate"]["count"] > 0 and not dropped["exact-duplicate"]["budgeted"]


def test_an_encoder_that_is_not_there(recipe: Path, place) -> None:
    with pytest.raises(UserError, match="holds no model"):
        pipeline.evaluate(recipe, "evaluate.ontology.embedding_model=/nowhere", folder=place.path)
