"""The ontology that the paths of all documents together give: written, summed, pruned on the eval split, scored on the test split.

Everything lies in the run folder under ``ontology/``. Documents that were written before the run was stopped are not written again.
"""

from __future__ import annotations

import csv
import io
import random
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import networkx as nx
import numpy as np
from peft import PeftModel
from transformers import PreTrainedModel

from luthier.encoding.batches import shuffled
from luthier.encoding.encode import encode_prompt
from luthier.encoding.text_tokenizer import TextTokenizer
from luthier.encoding.token_bytes import token_bytes
from luthier.errors import UserError
from luthier.evaluate.runner import Judging, Models, scored_batches
from luthier.metrics import ontology as metrics
from luthier.metrics.ontology import TitledGraph
from luthier.models.sample import Sampled, Sampling, sample
from luthier.models.sentences import SentenceEncoder
from luthier.ontology.constrain import PathGrammar, TokenChoice
from luthier.ontology.graph import Document, Ontology, build, shape, write
from luthier.ontology.hearst import hypernyms
from luthier.ontology.masking import EdgeCounts, node_of, paths_of, realised
from luthier.ontology.prune import Pruned, RelativeRule, prune, pruned_at, sweep_points
from luthier.recipe import Recipe
from luthier.records import SPLITS, Example, Progress, Row, Split
from luthier.rows import Rows
from luthier.run_folder import (
    RunFolder,
    json_line,
    logger,
    read_json,
    read_jsonl,
    write_json,
    write_jsonl,
    write_text,
)
from luthier.tasks.ontology import Ontology as OntologyTask

_SPLITS: tuple[Split, ...] = ("eval", "test")
# Documents that are given to the model in an order of their own, before the next ones are read.
_AT_ONCE = 1024
# Training rows whose losses are looked at, for edges that the test split does not have.
_MOST_TRAIN_ROWS = 512
# Cells of the unpruned graph up to which the 441 points of the sweep get their best matchings; beyond, all get greedy ones.
_SWEEP_CELLS = 2000 * 2000


@dataclass(slots=True)
class _Stage:
    """What the steps below share."""

    recipe: Recipe
    run: RunFolder
    task: OntologyTask
    tokenizer: TextTokenizer
    models: Models
    rows: Mapping[Split, Rows]
    counts: EdgeCounts
    encoder: SentenceEncoder
    progress: Progress
    truths: dict[str, Ontology] = field(default_factory=dict)

    def titled(self, ontology: Ontology) -> TitledGraph:
        titles, edges = ontology.arrays()
        return TitledGraph(titles, edges, self.encoder.embed(titles))


def evaluate_graph(judging: Judging) -> dict[str, Any]:
    """Writes the run's ``ontology/``, without the texts of another key; returns what is in its ``scores.json``."""
    recipe, run, task = judging.recipe, judging.run, judging.task
    assert isinstance(task, OntologyTask)
    rows: dict[Split, Rows] = {split: Rows(run.rows(split)) for split in SPLITS}
    stage = _Stage(
        recipe, run, task, judging.tokenizer, judging.models, rows,
        EdgeCounts.of(paths_of(rows["train"])),
        SentenceEncoder(recipe.evaluate.ontology.embedding_model),
        judging.progress or (lambda label, done, total: None),
    )  # fmt: skip
    _forget_others(run, judging.key)
    stage.truths = {split: _truth(rows[split]) for split in SPLITS}
    systems: dict[str, Any] = {}
    for system in ("tuned", *dict.fromkeys(recipe.evaluate.ontology.baselines)):
        systems[system] = _judge(stage, system)
        f1 = {name: round(values.get("f1", values.get("distance")), 3) for name, values in systems[system]["scores"].items()}  # fmt: skip
        logger.info("ontology: %s: %s", system, f1)
    scores = {
        "embedding_model": stage.encoder.name,
        "embedding_sha256": stage.encoder.sha256,
        "threshold": metrics.THRESHOLD,
        "num_convolutions": metrics.NUM_CONVOLUTIONS,
        "relative_rule": recipe.evaluate.ontology.relative_rule,
        "loss": task.loss,
        "truth": {split: shape(truth) for split, truth in stage.truths.items()},
        "overlap": {
            **_overlap(stage.truths["train"], stage.truths["test"]),
            "eval": _overlap(stage.truths["train"], stage.truths["eval"]),
        },
        "systems": systems,
        "mean_count": stage.counts.mean,
        "edge_losses": {split: _edge_losses(stage, split) for split in ("train", "test")},
        "masks": _masks(stage),
    }
    write_json(run.ontology / "scores.json", scores)
    return scores


def _forget_others(run: RunFolder, key: str) -> None:
    """Removes texts that were written with other settings."""
    mark = run.ontology / "key.json"
    if not mark.is_file() or read_json(mark)["key"] != key:
        for path in run.ontology.glob("*.jsonl"):
            path.unlink()
        write_json(mark, {"key": key})


def _truth(rows: Rows) -> Ontology:
    """The graph of the paths of some rows; whatever begins a path is the root."""
    documents: list[Document] = []
    titles: dict[str, str] = {}
    root = ""
    for row in rows:
        root = root or row.meta["paths"][0][0]
        documents.append(Document(row.id, [[root, *path[1:]] for path in row.meta["paths"]]))
        titles |= row.meta.get("titles", {})
    return build(documents, root, titles)


def _judge(stage: _Stage, system: str) -> dict[str, Any]:
    """The scores of one system: its graphs, the sweep on the eval split, and the pruned graph of the test split."""
    options = stage.recipe.evaluate.ontology
    raw, facts = {}, {}
    for split in _SPLITS:
        raw[split], facts[split] = _raw(stage, system, split)
    truth = stage.titled(stage.truths["test"])
    sweep: list[dict[str, float]] = []
    if stage.truths["eval"].edges:
        goal = stage.titled(stage.truths["eval"])
        sweep = _sweep(
            raw["eval"],
            goal,
            stage.titled,
            options.relative_rule,
            partial(stage.progress, f"{system}: sweep"),
        )
        write_json(stage.run.ontology / f"{system}-sweep.json", sweep)
    best = max(sweep, key=lambda point: point["continuous_f1"], default={"alpha": 0.0, "beta": 0.0})
    pruned = prune(raw["test"], best["alpha"], best["beta"], options.relative_rule)
    folder = stage.run.ontology / system
    write(pruned.ontology, folder)
    _write_removed(folder, raw["test"], pruned)
    if system == "tuned":
        truth_json = nx.node_link_data(stage.truths["test"].networkx(), edges="links")
        write_json(stage.run.ontology / "truth.json", truth_json)
    return {
        "alpha": best["alpha"],
        "beta": best["beta"],
        "scores": metrics.compare(stage.titled(pruned.ontology), truth),
        "unpruned_scores": metrics.compare(stage.titled(prune(raw["test"]).ontology), truth),
        "recall_by_count": _recall_by_count(stage, pruned.ontology),
        "raw": shape(raw["test"]),
        "pruned": shape(pruned.ontology),
        "removed": dict(Counter(reason for _, reason in pruned.removed)),
        "num_attached": pruned.num_attached,
        "written": {split: written for split, written in facts.items() if written},
    }


def _sweep(
    raw: Ontology,
    goal: TitledGraph,
    titled: Callable[[Ontology], TitledGraph],
    rule: RelativeRule,
    progress: Callable[[int, int], None],
) -> list[dict[str, float]]:
    """Continuous F1 at each of the 441 points, all by one kind of matching: a greedy one finds less, so that points of both kinds could not be compared."""
    points = sweep_points(len(raw.edges))
    best = len(raw.edges) * len(goal.edges) <= _SWEEP_CELLS
    scores, done = [0.0] * len(points), 0
    for places, pruned in pruned_at(raw, points, rule):
        score = metrics.continuous(titled(pruned.ontology), goal, metrics.MOST_CELLS if best else 0).f1
        for place in places:
            scores[place] = score
        done += len(places)
        progress(done, len(points))
    return [
        {"alpha": alpha, "beta": beta, "continuous_f1": score}
        for (alpha, beta), score in zip(points, scores, strict=True)
    ]


def _raw(stage: _Stage, system: str, split: Split) -> tuple[Ontology, dict[str, Any] | None]:
    """The sum of what a system says of a split's documents, and how it was written."""
    rows = stage.rows[split]
    if system == "memorisation":
        train = stage.truths["train"]
        return _by_title(train, stage.task.root), None
    if system == "hearst":
        documents = []
        for row in rows:
            pairs = dict.fromkeys(hypernyms(_document(row, stage.tokenizer)))
            documents.append(Document(row.id, [list(pair) for pair in pairs]))
        return build(documents, stage.task.root), None
    written = _written(stage, system, split)
    documents = [Document(w["id"], w["paths"], w["log_probabilities"]) for w in written]
    invalid: Counter[str] = sum((Counter(w["invalid"]) for w in written), Counter())
    seconds = sum(w["seconds"] for w in written)
    facts = {
        "num_documents": len(written),
        "num_valid_lines": sum(len(w["paths"]) for w in written),
        "num_repeated_lines": sum(w["num_repeated"] for w in written),
        "invalid_lines": dict(invalid),
        "num_not_ended": sum(not w["ended"] for w in written),
        "seconds": round(seconds, 2),
        "documents_per_s": round(len(written) / seconds, 3) if seconds else None,
    }
    return build(documents, stage.task.root), facts


def _by_title(ontology: Ontology, root: str) -> Ontology:
    """The graph with titles as ids, as a model would write it; edges of one pair of titles are one."""
    supporters: defaultdict[tuple[str, str], dict[str, None]] = defaultdict(dict)
    for (u, v), relation in ontology.edges.items():
        edge = ontology.titles[u], ontology.titles[v]
        supporters[edge].update(dict.fromkeys(relation.documents))
    by_document: defaultdict[str, list[list[str]]] = defaultdict(list)
    for edge, documents in supporters.items():
        for document in documents:
            by_document[document].append(list(edge))
    return build((Document(name, paths) for name, paths in by_document.items()), root)


def _written(stage: _Stage, system: str, split: Split) -> list[dict[str, Any]]:
    """What a model wrote for each row, in the order of the rows; only what is missing is written now."""
    recipe, rows = stage.recipe, stage.rows[split]
    options = recipe.evaluate.ontology
    file = stage.run.ontology / f"{system}-{split}.jsonl"
    done = {line["id"]: line for line in read_jsonl(file)}
    write_jsonl(file, done.values())  # without a half-written end
    missing = [i for i, name in enumerate(rows.column("id").to_pylist()) if name not in done]
    if missing:
        how = Sampling(
            recipe.evaluate.max_new_tokens, options.temperature, options.top_p, recipe.seed,
            None if system == "tuned" else r"\S\s*\n\s*\n",
        )  # fmt: skip
        choice, known = _choice(stage)
        with (
            stage.models["tuned" if system == "tuned" else "base"]() as model,
            open(file, "a", encoding="utf-8") as out,
        ):
            model.eval()
            for start in range(0, len(missing), _AT_ONCE):
                part = [rows.row(i) for i in missing[start : start + _AT_ONCE]]
                prompts = [_prompt(stage, system, row, model) for row in part]
                names = [row.id for row in part]
                began = time.perf_counter()
                for indices, texts in sample(
                    model, stage.tokenizer, prompts, names, how, choice=choice, batch_size=recipe.evaluate.batch_size
                ):  # fmt: skip
                    seconds = (time.perf_counter() - began) / len(indices)
                    for index, text in zip(indices, texts, strict=True):
                        line = {"id": names[index], **_read(stage, text, known), "seconds": seconds}
                        done[names[index]] = line
                        out.write(json_line(line))
                    out.flush()
                    stage.progress(f"{system}: {split}", len(done), len(rows))
                    began = time.perf_counter()
    return [done[name] for name in rows.column("id").to_pylist()]


def _read(stage: _Stage, written: Sampled, known: Callable[[str], bool] | None) -> dict[str, Any]:
    """A text as paths, with the log-probability of each node: the sum over the tokens that begin in it."""
    output = written.output
    parsed = stage.task.paths.parse(output.text, ended=output.ended, known=known)
    starts = np.cumsum([0, *map(len, stage.tokenizer.pieces(output.ids))])[:-1]
    totals = np.concatenate([[0.0], np.cumsum(written.log_probabilities)])
    logs = []
    for line in parsed.lines:
        edges = [np.searchsorted(starts, place) for place in line.places]
        logs.append([round(float(totals[end] - totals[start]), 4) for start, end in edges])
    return {
        "output": output.text,
        "ended": output.ended,
        "paths": [list(line.titles) for line in parsed.lines],
        "log_probabilities": logs,
        "invalid": dict(parsed.invalid),
        "num_repeated": parsed.num_repeated,
    }


def _choice(stage: _Stage) -> tuple[TokenChoice | None, Callable[[str], bool] | None]:
    """The tokens that may be written, and which titles are known; None for no limit."""
    options = stage.recipe.evaluate.ontology
    if options.constrain == "none":
        return None, None
    titles: set[str] | None = None
    if options.constrain == "nodes":
        if options.nodes is None:
            truth = stage.truths["train"]
            titles = {title for node, title in truth.titles.items() if node != truth.root}
        else:
            titles = set(_lines_of(options.nodes))
        titles = {title for title in titles if stage.task.paths.problem(title) is None}
        if not titles:
            raise UserError(
                "no known node has a title that can be written",
                "recipe key evaluate.ontology.nodes",
                "give a file with a title a line",
            )
    grammar = PathGrammar(stage.task.paths, sorted(titles) if titles is not None else None)
    choice = TokenChoice(grammar, token_bytes(stage.tokenizer), stage.tokenizer.stop_ids)
    return choice, titles.__contains__ if titles is not None else None


def _lines_of(path: str) -> Iterable[str]:
    try:
        with open(path, encoding="utf-8") as file:
            return [line.rstrip("\n") for line in file if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"the known nodes cannot be read: {error}",
            f"recipe key evaluate.ontology.nodes ({path})",
            "name a text file in UTF-8 with a title a line",
        ) from error


def _prompt(stage: _Stage, system: str, row: Row, model: PreTrainedModel | PeftModel) -> list[int]:
    """The ids to feed: the row's own prompt, or for k-shot instructions, examples and the document."""
    if system == "tuned":
        return [int(i) for i in row.input_ids[: row.num_prompt_tokens]]
    paths = stage.task.paths
    train = stage.rows["train"]
    count = min(int(system.partition("-")[0]), len(train))
    parts = [
        f"Sort the document into a hierarchy of categories. Write paths from the root “{paths.root}” down to the most "
        f"specific category that fits, from general to specific, one path a line, with “{paths.separator}” between "
        "two categories.\n"
    ]
    if not count:
        form = paths.write([[paths.root, "broad category", "narrower category", "most specific category"]])
        parts.append(f"Each line has this form:\n{form}")
    for index in random.Random(f"{stage.recipe.seed} {row.id}").sample(range(len(train)), count):
        shot = train.row(index)
        parts.append(f"\nDocument:\n{_document(shot, stage.tokenizer)}\nPaths:\n{shot.target}")
    parts.append(f"\nDocument:\n{_document(row, stage.tokenizer)}\nPaths:")
    example = Example(row.id, stage.task.prompt("".join(parts), stage.tokenizer), row.group)
    context = getattr(model.config, "max_position_embeddings", None) or 1 << 20
    room = min(
        (count + 1) * (stage.recipe.data.max_length + 256), context - stage.recipe.evaluate.max_new_tokens
    )
    try:
        return encode_prompt(example, stage.tokenizer, room)
    except ValueError as error:
        raise UserError(
            f"{system}: {error}, beside {stage.recipe.evaluate.max_new_tokens} new tokens of a context of {context}",
            "recipe key evaluate.max_new_tokens",
            "lower it, or take another model; or leave the baseline out of evaluate.ontology.baselines",
        ) from error


def _document(row: Row, tokenizer: TextTokenizer) -> str:
    """Title and abstract of a row, as they stand in its prompt."""
    places = [place for place, name in enumerate(row.span_names) if name == "prompt"]
    return tokenizer.decode(row.input_ids[np.isin(row.span_ids, places)]).strip()


def _overlap(train: Ontology, held: Ontology) -> dict[str, float]:
    """Share of a held-out split's nodes and edges, by id, that training has seen."""
    nodes = len(set(held.titles) & set(train.titles)) / max(len(held.titles), 1)
    return {"nodes": nodes, "edges": len(set(held.edges) & set(train.edges)) / max(len(held.edges), 1)}


def _kind(counts: EdgeCounts, edge: tuple[str, str]) -> str:
    if not counts.counts[edge]:
        return "unseen"
    return "head" if counts.is_head(edge) else "tail"


def _recall_by_count(stage: _Stage, predicted: Ontology) -> dict[str, dict[str, Any]]:
    """Share of the true edges found, letter by letter: frequent in training (over M), rarer, or never seen."""
    truth = stage.truths["test"]
    ours = {(predicted.titles[u], predicted.titles[v]) for u, v in predicted.edges}
    found: dict[str, list[bool]] = {"head": [], "tail": [], "unseen": []}
    for u, v in truth.edges:
        found[_kind(stage.counts, (u, v))].append((truth.titles[u], truth.titles[v]) in ours)
    return {
        kind: {"num_edges": len(hits), "recall": sum(hits) / len(hits) if hits else None}
        for kind, hits in found.items()
    }


def _edge_losses(stage: _Stage, split: Split) -> dict[str, Any]:
    """Loss of nodes given the true path before them, by how often training has seen the edge.

    ``nats`` is the mean over edges of the sum over a node's tokens; ``accuracy`` the share of nodes whose tokens are all the
    most likely ones. Of the training split, the first rows are enough.
    """
    rows = stage.rows[split][: _MOST_TRAIN_ROWS if split == "train" else len(stage.rows[split])]
    result: dict[str, Any] = {}
    for which, lend in stage.models.items():
        sums: defaultdict[str, list[float]] = defaultdict(lambda: [0, 0.0, 0, 0.0])
        with lend() as model:
            model.eval()
            done = 0
            for indices, scores in scored_batches(model, rows, stage.recipe.train.tokens_at_once):
                nats, right = scores.nll_N.double().cpu().numpy(), scores.correct_N.cpu().numpy()
                owners = scores.rows_N.cpu().numpy()
                for place, index in enumerate(indices):
                    own = owners == place
                    _add_edges(stage, rows[index], nats[own], right[own], sums)
                done += len(indices)
                stage.progress(f"{which}: losses of edges, {split}", done, len(rows))
        result[which] = {
            kind: {"num_edges": int(n), "num_tokens": int(t), "nats": loss / n, "accuracy": hits / n}
            for kind, (n, loss, t, hits) in sorted(sums.items())
        }
    return result


def _add_edges(
    stage: _Stage, row: Row, nats: np.ndarray, right: np.ndarray, sums: defaultdict[str, list[float]]
) -> None:
    spans = row.span_ids[1:][row.loss_weights[1:] != 0]
    for place, name in enumerate(row.span_names):
        if (node := node_of(name)) is None:
            continue
        own = spans == place
        path = row.meta["paths"][node[0]]
        entry = sums[_kind(stage.counts, (path[node[1] - 1], path[node[1]]))]
        entry[0] += 1
        entry[1] += float(nats[own].sum())
        entry[2] += int(own.sum())
        entry[3] += bool(right[own].all())


def _masks(stage: _Stage) -> dict[str, Any] | None:
    """The mask share of each edge as it was in training, beside the formula; None for another loss."""
    if stage.task.loss != "masked":
        return None
    rows, recipe = stage.rows["train"], stage.recipe
    steps = max((line["step"] for line in read_jsonl(stage.run.history)), default=0)
    positions = steps * recipe.train.batch_size
    indices = shuffled(0, positions, len(rows), recipe.seed)
    visits = ((index, place // len(rows)) for place, index in enumerate(indices))
    edges = realised(stage.counts, rows, visits, recipe.seed)
    drawn = sum(edge["drawn"] for edge in edges)
    expected = sum(edge["drawn"] * edge["probability"] for edge in edges)
    return {
        "mean_count": stage.counts.mean,
        "share": sum(edge["masked"] for edge in edges) / drawn if drawn else None,
        "expected_share": expected / drawn if drawn else None,
        "edges": edges,
    }


def _write_removed(folder: Path, raw: Ontology, pruned: Pruned) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["parent", "child", "weight", "reason"])
    writer.writerows([u, v, raw.edges[u, v].weight, reason] for (u, v), reason in pruned.removed)
    write_text(folder / "removed.csv", text.getvalue())
