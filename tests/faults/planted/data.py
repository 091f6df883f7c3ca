"""Defects of data: targets, copies, leaks, order, labels, encodings; and healthy set-ups near the thresholds of these checks."""

import json
import random
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import datasets
from tests.faults.suite import Said, cli, healthy, planted
from tests.fixtures import tiny_trainer
from tests.fixtures.tiny_model import make_tokenizer
from tests.fixtures.tiny_trainer import IGNORED, Item
from torch.utils.data import IterableDataset

import luthier

PLAIN = {"type": "instruction", "format": "plain"}
WORDS = [f"{a}{b}" for a in "bcdfghjklmnprstvz" for b in ("ado", "ebi", "ilo", "oru", "une", "afi")]


def words(draw: random.Random, count: int) -> str:
    """So many made-up words."""
    return " ".join(draw.choices(WORDS, k=count))


def texts(count: int, seed: int = 0) -> list[dict[str, str]]:
    """Prompts and responses of made-up words, no two alike."""
    draw = random.Random(seed)
    return [
        {"prompt": f"{words(draw, 8)}:", "response": f"{words(draw, draw.randrange(8, 16))}."}
        for _ in range(count)
    ]


def instructions(
    folder: Path, rows: Iterable[dict[str, str]], task: dict[str, Any] = PLAIN, **data: Any
) -> Said:
    """``luthier check --quick`` of a recipe over such rows."""
    with open(folder / "rows.jsonl", "w", encoding="utf-8", newline="") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    source = {"type": "files", "path": str(folder / "rows.jsonl")}
    settings = {"source": source, "max_length": 256, "near_duplicates": "off", **data}
    from tests.fixtures.tiny_run import write_recipe

    return cli("check", write_recipe(folder, task=task, data=settings), "--run", folder / "run", "--quick")


def item(prompt: str, response: str, *, split_special: bool = True) -> Item:
    """A row of a Trainer: the response and EOS are trained."""
    tokenizer = make_tokenizer()
    tokenizer.split_special_tokens = split_special
    first = tokenizer.encode(prompt, add_special_tokens=False)
    second = [*tokenizer.encode(response, add_special_tokens=False), 2]
    ids = first + second
    return {
        "input_ids": ids,
        "attention_mask": [1] * len(ids),
        "labels": [IGNORED] * len(first) + second,
    }


def items(rows: Iterable[dict[str, str]]) -> list[Item]:
    """Rows of a Trainer."""
    return [item(row["prompt"], " " + row["response"]) for row in rows]


def audited(rows: list[dict[str, str]], others: list[dict[str, str]] | None = None, **settings: Any) -> Said:
    """``luthier.audit`` of a Trainer over such rows."""
    evaluated = items(texts(12, seed=1) if others is None else others)
    return luthier.audit(tiny_trainer.trainer(train=items(rows), eval=evaluated, **settings), quick=True)


def labelled(
    count: int, label: Callable[[int], Any], num_labels: int = 3, seed: int = 0, **settings: Any
) -> Any:
    """A Trainer of a classifier over made-up texts."""
    draw = random.Random(seed)
    rows = []
    for index in range(count):
        ids = make_tokenizer().encode(words(draw, draw.randrange(6, 12)), add_special_tokens=False)
        rows.append({"input_ids": ids, "attention_mask": [1] * len(ids), "labels": label(index)})
    made = tiny_trainer.classifier(num_labels=num_labels)
    made.accepts_loss_kwargs = False
    return tiny_trainer.class_trainer(made, num_labels=num_labels, train=rows, **settings)


class Stream(IterableDataset):
    """Items one after the other, through a shuffle buffer of some size."""

    def __init__(self, rows: list[Item], buffer: int = 1) -> None:
        self.rows, self.buffer = rows, buffer

    def __iter__(self) -> Any:
        draw, waiting = random.Random(0), []
        for row in self.rows:
            waiting.append(row)
            if len(waiting) == self.buffer:
                yield waiting.pop(draw.randrange(len(waiting)))
        draw.shuffle(waiting)
        yield from waiting


# Targets


@planted("empty-target", catalogue=(1,), where="data set")
def answers_that_are_missing(folder: Path) -> Said:
    """Three rows of a Trainer have no answer but EOS."""
    rows = texts(48)
    for index in (3, 20, 41):
        rows[index]["response"] = ""
    return audited(rows)


@planted("empty-target", catalogue=(1,), where="rows file")
def answers_of_white_space(folder: Path) -> Said:
    """Two rows of a file of tokenised rows have answers of white space alone."""
    rows = items([*texts(40), {"prompt": "say:", "response": "\n\n"}, {"prompt": "do:", "response": " \t"}])
    return audited_file(folder, rows)


def audited_file(folder: Path, rows: list[Item], others: list[Item] | None = None) -> Said:
    """``luthier audit --quick`` of files of tokenised rows."""
    tiny_trainer.save_folder(folder / "model")
    names = {"rows": rows, "eval-rows": others}
    given: list[Any] = ["audit", "--model", folder / "model", "--quick"]
    for name, part in names.items():
        if part is not None:
            (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
            given += [f"--{name}", folder / f"{name}.jsonl"]
    return cli(*given)


@planted("drop-budget", catalogue=(1, 26), where="data file")
def responses_that_are_empty(folder: Path) -> Said:
    """One in eight records of a recipe's file has an empty response, and is dropped."""
    rows = texts(120)
    for row in rows[::8]:
        row["response"] = " "
    return instructions(folder, rows)


@planted("constant-target", catalogue=(1,), where="data file", severity="warning")
def one_answer_for_most_rows(folder: Path) -> Said:
    """Six in ten responses of a recipe's file are N/A."""
    rows = texts(120)
    for index, row in enumerate(rows):
        if index % 10 < 6:
            row["response"] = "N/A"
    return instructions(folder, rows)


@planted("constant-target", catalogue=(1,), where="data set", severity="warning")
def one_answer_in_several_spellings(folder: Path) -> Said:
    """Seven in ten answers of a Trainer say the same in other case, white space and punctuation."""
    spellings = ["N/A", "n/a", "N/A.", "n / a", " N/A\n"]
    rows = texts(50)
    for index, row in enumerate(rows):
        if index % 10 < 7:
            row["response"] = spellings[index % 5]
    return audited(rows)


@planted("target-length", catalogue=(1,), where="data file", severity="warning")
def answers_that_say_nan(folder: Path) -> Said:
    """One in twenty responses of a recipe's file is the nan that a table library writes for a missing cell."""
    draw = random.Random(3)
    rows = [{"prompt": f"{words(draw, 6)}:", "response": words(draw, 30)} for _ in range(120)]
    for row in rows[::20]:
        row["response"] = "nan"
    return instructions(folder, rows)


@planted("target-length", catalogue=(30,), where="data set", severity="warning")
def one_answer_as_long_as_all_others(folder: Path) -> Said:
    """One answer of a Trainer is a pasted page with as many tokens as thirty others."""
    rows = texts(60)
    rows[17]["response"] = words(random.Random(5), 180)
    return audited(rows)


@planted("trim-share", catalogue=(18,), where="recipe", severity="note")
def max_length_that_cuts_most_rows(folder: Path) -> Said:
    """The recipe's max_length is shorter than most of its prompts with their responses."""
    draw = random.Random(4)
    rows = [{"prompt": f"{words(draw, 30)}:", "response": words(draw, 3)} for _ in range(120)]
    return instructions(folder, rows, max_length=64)


@planted("drop-budget", catalogue=(2, 18), where="recipe")
def max_length_under_the_targets(folder: Path) -> Said:
    """The recipe's max_length has no room for a fifth of the responses, which are dropped."""
    draw = random.Random(4)
    rows = [{"prompt": "say:", "response": words(draw, 40 if i % 5 == 0 else 8)} for i in range(120)]
    return instructions(folder, rows, max_length=64)


# Copies and leaks


@planted("duplicate-rows", catalogue=(22,), where="data set", severity="warning")
def source_that_is_read_twice(folder: Path) -> Said:
    """A Trainer's data set was joined of two, and the one holds a quarter of the other."""
    rows = texts(48)
    return audited(rows + rows[:12])


@planted("near-duplicates", catalogue=(22,), where="data file", severity="warning")
def copies_with_another_signature(folder: Path) -> Said:
    """A third of the records of a recipe's file are copies of others with another signature."""
    draw = random.Random(6)
    base = [{"prompt": f"{words(draw, 12)}:", "response": words(draw, 30)} for _ in range(80)]
    copies = [{**row, "response": f"{row['response']} {words(draw, 1)}"} for row in base[:40]]
    return instructions(folder, base + copies)


@planted("near-duplicates", catalogue=(22, 23), where="data set", severity="warning")
def evaluation_of_rewritten_rows(folder: Path) -> Said:
    """A Trainer's evaluation rows are training rows with one word changed."""
    draw = random.Random(7)
    rows = [{"prompt": f"{words(draw, 12)}:", "response": words(draw, 30)} for _ in range(48)]
    changed = []
    for row in rows[:12]:
        parts = row["response"].split()
        parts[draw.randrange(len(parts))] = words(draw, 1)
        changed.append({**row, "response": " ".join(parts)})
    return audited(rows, changed)


@planted("split-overlap", catalogue=(23,), where="data set")
def evaluation_on_training_rows(folder: Path) -> Said:
    """A quarter of a Trainer's evaluation rows are training rows."""
    rows = texts(48)
    return audited(rows, texts(9, seed=1) + rows[:3])


@planted("split-overlap", catalogue=(23,), where="rows file")
def documents_in_two_splits(folder: Path) -> Said:
    """Rows of one document stand in the training file and in the evaluation file."""
    rows = [{**row, "group": f"document {i // 4}"} for i, row in enumerate(items(texts(60)))]
    return audited_file(folder, rows[:46], rows[46:])


@planted("ngram-overlap", catalogue=(23,), where="data set", severity="warning")
def benchmark_inside_training_texts(folder: Path) -> Said:
    """The questions of a Trainer's evaluation stand, with their answers, within longer training texts."""
    draw = random.Random(8)
    asked = [{"prompt": f"{words(draw, 10)}:", "response": f"{words(draw, 8)}."} for _ in range(12)]
    rows = texts(48)
    for index, question in enumerate(asked[:8]):
        page = f"{words(draw, 12)} {question['prompt']} {question['response']} {words(draw, 12)}"
        rows[5 * index] = {"prompt": f"{words(draw, 4)}:", "response": page}
    return audited(rows, asked)


@planted("ngram-overlap", catalogue=(23,), where="data file", severity="warning")
def test_questions_under_another_template(folder: Path) -> Said:
    """A recipe's own test source holds training passages under other headings."""
    draw = random.Random(9)
    passages = [words(draw, 24) for _ in range(120)]
    rows = [{"prompt": f"Passage {words(draw, 1)}: {p}\nNext:", "response": words(draw, 9)} for p in passages]
    tests = [
        {"prompt": f"## Text\n{p}\n## Follow-up of {words(draw, 1)}", "response": words(draw, 1)}
        for p in passages[:20]
    ]
    (folder / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in tests))
    source = {"type": "files", "path": str(folder / "test.jsonl")}
    return instructions(folder, rows, test_source=source, splits={"train": 0.8, "eval": 0.2, "test": 0.0})


# Contradictions


@planted("conflicting-targets", catalogue=(1,), where="template", severity="warning")
def template_without_the_question(folder: Path) -> Said:
    """The recipe's prompt template has the instruction, which is the same in all rows, but not the input."""
    draw = random.Random(10)
    rows = [
        {"instruction": "Describe what follows.", "input": words(draw, 12), "response": words(draw, 9)}
        for _ in range(120)
    ]
    return instructions(folder, rows, {**PLAIN, "prompt_template": "{{ instruction }}"})


@planted("conflicting-targets", catalogue=(44,), where="data set", severity="warning")
def texts_with_two_labels(folder: Path) -> Said:
    """A fifth of a classifier's texts stand there twice, with two labels."""
    made = labelled(60, lambda i: i % 3)
    rows = made.train_dataset
    made.train_dataset = rows + [{**row, "labels": (row["labels"] + 1) % 3} for row in rows[:12]]
    return luthier.audit(made)


# Order


@planted("row-order", catalogue=(24,), where="data set", severity="warning")
def stream_sorted_by_class(folder: Path) -> Said:
    """A classifier's training rows are streamed in the order of their classes."""
    made = labelled(90, lambda i: i // 30)
    made.train_dataset = Stream(made.train_dataset)
    return luthier.audit(made)


@planted("row-order", catalogue=(24,), where="data set", severity="warning")
def shuffle_buffer_smaller_than_a_class(folder: Path) -> Said:
    """A stream sorted by class is shuffled through a buffer of a fifth of a class."""
    made = labelled(300, lambda i: i // 100)
    made.train_dataset = Stream(made.train_dataset, buffer=20)
    return luthier.audit(made)


@planted("row-order", catalogue=(24,), where="Trainer arguments", severity="warning")
def sequential_sampler_over_two_sources(folder: Path) -> Said:
    """A Trainer reads two sources of unlike texts one after the other, through a sequential sampler."""
    draw = random.Random(11)
    code = [
        {
            "prompt": f"for i in range({draw.randrange(99)}):",
            "response": f"print(i + {draw.randrange(999)})\n" * 2,
        }
        for _ in range(40)
    ]
    return audited(texts(40) + code, train_sampling_strategy="sequential")


@planted("row-order", catalogue=(24,), where="rows file", severity="note")
def file_sorted_by_answer(folder: Path) -> Said:
    """A file of tokenised rows is sorted by its four answers."""
    draw = random.Random(12)
    rows = [{"prompt": f"{words(draw, 8)}:", "response": "abcd"[i // 20]} for i in range(80)]
    return audited_file(folder, items(rows))


@planted("row-order", catalogue=(45,), where="Trainer arguments", severity="note")
def rows_grouped_by_length(folder: Path) -> Said:
    """A Trainer's sampler puts rows of like length together, so that the loss curve has spikes."""
    draw = random.Random(15)
    rows = [
        {"prompt": f"{words(draw, 6)}:", "response": words(draw, draw.randrange(3, 40))} for _ in range(400)
    ]
    return audited(rows, train_sampling_strategy="group_by_length")


@planted("row-order", catalogue=(24, 45), where="data set", severity="warning")
def stream_sorted_by_length(folder: Path) -> Said:
    """A Trainer's rows are streamed from the shortest to the longest."""
    draw = random.Random(16)
    rows = [
        {"prompt": f"{words(draw, 6)}:", "response": words(draw, draw.randrange(3, 40))} for _ in range(160)
    ]
    made = tiny_trainer.trainer(train=items(rows), eval=items(texts(12, seed=1)))
    made.train_dataset = Stream(sorted(made.train_dataset, key=lambda row: len(row["input_ids"])))
    return luthier.audit(made, quick=True)


# Labels


@planted("class-labels", catalogue=(44,), where="data set")
def labels_from_one(folder: Path) -> Said:
    """A classifier of three classes gets the labels 1 to 3."""
    return luthier.audit(labelled(60, lambda i: i % 3 + 1))


@planted("class-labels", catalogue=(44,), where="rows file")
def labels_of_another_head(folder: Path) -> Said:
    """Tokenised rows have five classes, and the model's folder a head for three."""
    tiny_trainer.save_folder(folder / "model", tiny_trainer.classifier(num_labels=3))
    rows = labelled(60, lambda i: i % 5, num_labels=5).train_dataset
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return cli("audit", "--model", folder / "model", "--rows", folder / "rows.jsonl")


@planted("class-labels", catalogue=(44,), where="model", severity="warning")
def labels_from_one_in_a_head_with_room(folder: Path) -> Said:
    """Labels 1 to 3 for a head that was made one larger, so that class 0 is never shown."""
    return luthier.audit(labelled(240, lambda i: i % 3 + 1, num_labels=4))


@planted("class-labels", catalogue=(44,), where="data set", severity="warning")
def class_that_was_filtered_out(folder: Path) -> Said:
    """One of four classes has no training row left."""
    return luthier.audit(labelled(240, lambda i: (0, 1, 3)[i % 3], num_labels=4))


@planted("class-labels", catalogue=(43,), where="data set", severity="warning")
def one_hot_labels_as_floats(folder: Path) -> Said:
    """A classifier of three classes gets one-hot vectors of floats, for which transformers takes three binary losses."""
    made = labelled(60, lambda i: [float(c == i % 3) for c in range(3)])
    made.eval_dataset = None
    made.args.eval_strategy = "no"
    return luthier.audit(made)


@planted("class-labels", catalogue=(43,), where="model", severity="warning")
def classes_for_a_head_of_one(folder: Path) -> Said:
    """Four classes, as floats, for a head with one output, for which transformers takes the squared error."""
    return luthier.audit(labelled(60, lambda i: float(i % 4), num_labels=1))


@planted("class-labels", catalogue=(44,), where="model", severity="warning")
def names_of_classes_in_another_order(folder: Path) -> Said:
    """The model's id2label has positive and negative the other way round than the data set."""
    made = labelled(60, lambda i: (i * 7) % 2, num_labels=2)
    features = datasets.Features(
        input_ids=datasets.List(datasets.Value("int64")),
        attention_mask=datasets.List(datasets.Value("int64")),
        labels=datasets.ClassLabel(names=["negative", "positive"]),
    )
    made.train_dataset = datasets.Dataset.from_list(made.train_dataset, features=features)
    made.model.config.id2label = {0: "positive", 1: "negative"}
    return luthier.audit(made)


@planted("class-labels", catalogue=(24,), where="data set", severity="warning")
def one_class_for_nearly_all_rows(folder: Path) -> Said:
    """49 of 50 rows of a classifier have one class."""
    return luthier.audit(labelled(200, lambda i: int(i % 50 == 0), num_labels=2))


# Texts


@planted("encoding", catalogue=(20,), where="data file", severity="warning")
def file_read_in_the_wrong_encoding(folder: Path) -> Said:
    """A recipe's file was written from UTF-8 that had been read as Windows-1252."""
    rows = texts(120)
    for row in rows[::6]:
        row["response"] += " “café”".encode().decode("cp1252", errors="replace").replace("\ufffd", "")
    return instructions(folder, rows)


@planted("encoding", catalogue=(20,), where="data file", severity="warning")
def line_ends_of_two_systems(folder: Path) -> Said:
    """A third of a recipe's responses have Windows line ends, the rest have none."""
    rows = [{**row, "response": row["response"].replace(" ", "\n", 3)} for row in texts(120)]
    for row in rows[::3]:
        row["response"] = row["response"].replace("\n", "\r\n")
    return instructions(folder, rows)


@planted("encoding", catalogue=(20,), where="data set", severity="warning")
def bytes_that_could_not_be_read(folder: Path) -> Said:
    """A tenth of a Trainer's prompts hold the replacement character of a lenient decoder."""
    rows = texts(60)
    for row in rows[::10]:
        row["prompt"] = "caf\ufffd " + row["prompt"]
    return audited(rows)


@planted("encoding", catalogue=(20,), where="data file", severity="warning")
def files_joined_with_their_byte_order_marks(folder: Path) -> Said:
    """Texts of a recipe's file were joined from files with byte order marks."""
    rows = texts(120)
    for row in rows[::9]:
        row["response"] += " \ufeffand " + row["prompt"]
    return instructions(folder, rows)


@planted("special-strings", catalogue=(19,), where="data file", severity="note")
def conversation_in_a_text_column(folder: Path) -> Said:
    """Two prompts of a recipe's file hold a pasted conversation with its control tokens."""
    rows = texts(120)
    for row in rows[5:7]:
        row["prompt"] += " <|im_start|>user\nhi<|im_end|>"
    return instructions(folder, rows)


@planted("special-strings", catalogue=(19,), where="data set", severity="warning")
def user_text_that_ends_its_turn(folder: Path) -> Said:
    """Two users of a Trainer's ChatML rows wrote the end-of-turn string, which became the control token."""
    draw = random.Random(13)
    rows = []
    for index in range(60):
        asked = words(draw, 8)
        if index in (12, 40):
            asked = asked.replace(" ", "<|im_end|>", 1)
        prompt = f"<|im_start|>user\n{asked}<|im_end|>\n<|im_start|>assistant\n"
        rows.append(item(prompt, words(draw, 8), split_special=False))
    made = tiny_trainer.trainer(train=rows, eval=items(texts(12, seed=1)))
    return luthier.audit(made, quick=True)


@planted("special-strings", catalogue=(19,), where="rows file", severity="warning")
def end_of_text_in_the_middle_of_a_prompt(folder: Path) -> Said:
    """Three prompts of tokenised rows spelled the EOS string, which became EOS."""
    draw = random.Random(14)
    rows = []
    for index in range(60):
        asked = words(draw, 8)
        if index in (12, 30, 40):
            asked = asked.replace(" ", "<|im_end|>", 1)
        rows.append(item(f"{asked}:", words(draw, 8), split_special=False))
    return audited_file(folder, rows)


# Healthy set-ups near the thresholds


@healthy
def sums_with_a_long_system_prompt(folder: Path) -> Said:
    """Sums behind a system prompt of a hundred tokens: rows have most of their text in common, and are no copies."""
    system = words(random.Random(20), 40)
    rows = [
        {"prompt": f"{system}\nHow much is {a} plus {b}?", "response": f"{a + b}"}
        for a, b in ((i * 37 % 101, i * 61 % 97) for i in range(60))
    ]
    return audited(rows[:48], rows[48:])


@healthy
def few_system_prompts_for_other_questions(folder: Path) -> Said:
    """Five long system prompts, each before some questions of training and evaluation; the questions differ."""
    draw = random.Random(21)
    systems = [words(draw, 30) for _ in range(5)]
    rows = [
        {"prompt": f"{systems[i % 5]}\n{words(draw, 12)}?", "response": words(draw, 12)} for i in range(100)
    ]
    return audited(rows[:80], rows[80:])


@healthy
def several_answers_to_one_question(folder: Path) -> Said:
    """Four sampled answers to each question, as rejection sampling gives them."""
    draw = random.Random(22)
    rows = [
        {"prompt": f"{words(random.Random(i // 4), 10)}?", "response": words(draw, 12)} for i in range(96)
    ]
    draw.shuffle(rows)
    return audited(rows)


@healthy
def skewed_classes_in_no_order(folder: Path) -> Said:
    """A classifier with classes of 70%, 25% and 5%, streamed after a whole shuffle."""
    draw = random.Random(23)
    made = labelled(160, lambda i: draw.choices((0, 1, 2), (70, 25, 5))[0])
    made.train_dataset = Stream(made.train_dataset)
    return luthier.audit(made)


@healthy
def many_classes_and_few_rows(folder: Path) -> Said:
    """A classifier of 280 classes and 100 rows: most classes have no row, and cannot have one."""
    made = labelled(100, lambda i: (i * 97) % 280, num_labels=280)
    return luthier.audit(made)


@healthy
def texts_in_many_languages(folder: Path) -> Said:
    """Answers with accents, guillemets, Cyrillic, Greek, Chinese and emoji, all read as they were written."""
    draw = random.Random(24)
    tails = (
        "CAFÉ» «à l’ÉTÉ»",
        "„Straß“ Ä“ …",
        "привет, мир",
        "Ελληνικά · 5°",
        "中文 日本語 。",
        "😀 naïve – São",
    )
    rows = [{**row, "response": f"{row['response']} {draw.choice(tails)}"} for row in texts(120)]
    return instructions(folder, rows)


@healthy
def answers_from_one_word_to_a_page(folder: Path) -> Said:
    """Answers whose lengths are log-normal, from two tokens to hundreds."""
    draw = random.Random(25)
    rows = [
        {
            "prompt": f"{words(draw, 8)}:",
            "response": words(draw, max(1, round(draw.lognormvariate(2.3, 0.9)))),
        }
        for _ in range(80)
    ]
    return audited(rows)


@healthy
def chat_of_one_turn_and_some_of_three(folder: Path) -> Said:
    """Tokenised ChatML rows of one turn, a few of them of three: control tokens take turns in all of them."""
    draw = random.Random(26)
    rows = []
    for index in range(60):
        turns = 3 if index % 15 == 0 else 1
        prompt = "".join(
            f"<|im_start|>user\n{words(draw, 8)}<|im_end|>\n<|im_start|>assistant\n"
            + (f"{words(draw, 8)}<|im_end|>\n" if turn < turns - 1 else "")
            for turn in range(turns)
        )
        rows.append(item(prompt, words(draw, 8), split_special=False))
    return audited_file(folder, rows)


@healthy
def regression_on_a_scale(folder: Path) -> Said:
    """Scores between 0 and 5 in steps of a tenth for a head with one output."""
    made = labelled(80, lambda i: (i * 37 % 51) / 10, num_labels=1)
    made.eval_dataset = labelled(12, lambda i: i / 4, num_labels=1, seed=1).train_dataset
    return luthier.audit(made)
