"""LLaMA-Factory: ``llamafactory-cli train`` on a YAML file, a model folder and the rows as JSON."""

import json
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import cases
import yaml

from tools.common import Finding, distinct, each

# Its own lines and its libraries', with the lines that go on with them, and Python's warnings.
SAID = re.compile(
    r"\[(?P<level>WARNING|ERROR|CRITICAL)[|\]].*?>> (?P<text>.*(?:\n[^\[\n].*)*)|(?P<warning>\w*Warning: .*)|\[transformers\] (?P<other>.*)"
)
TAGS = {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant"}


def look(setup: cases.SetUp) -> list[Finding]:
    folder = Path(tempfile.mkdtemp())
    shutil.copytree(setup.folder, folder / "model")
    setup.tokenizer.save_pretrained(folder / "model")
    described = {}
    for name, rows in (("train", setup.rows), ("eval", setup.eval_rows)):
        (folder / f"{name}.json").write_text(json.dumps([record(row) for row in rows or []]))
        described[name] = {"file_name": f"{name}.json"}
        if rows and "messages" in rows[0]:
            described[name] |= {"formatting": "sharegpt", "columns": {"messages": "messages"}, "tags": TAGS}
    (folder / "dataset_info.json").write_text(json.dumps(described))
    settings = {
        "stage": "sft",
        "do_train": True,
        "finetuning_type": "full",
        "model_name_or_path": str(folder / "model"),
        "dataset_dir": str(folder),
        "dataset": "train",
        "eval_dataset": "eval",
        "cutoff_len": cases.base.NUM_POSITIONS,
        "output_dir": str(folder / "output"),
        **cases.ARGUMENTS,
        **setup.args,
        **setup.factory,
    }
    (folder / "train.yaml").write_text(yaml.safe_dump(settings))
    command = [sys.executable, "-m", "llamafactory.cli", "train", folder / "train.yaml"]
    process = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    print(process.stdout)
    findings = []
    for match in SAID.finditer(process.stdout):
        severity = "error" if match["level"] in ("ERROR", "CRITICAL") else "warning"
        findings.append({"severity": severity, "text": match["text"] or match["warning"] or match["other"]})
    if process.returncode:
        last = [line for line in process.stdout.splitlines() if re.match(r"\S*(Error|Exception)\b", line)]
        findings.append(
            {"severity": "error", "text": last[-1] if last else f"exit code {process.returncode}"}
        )
    return distinct(findings)


def record(row: dict[str, Any]) -> dict[str, Any]:
    """A row as LLaMA-Factory's alpaca or sharegpt format has it."""
    if "messages" in row:
        return row
    return {"instruction": row["prompt"], "input": "", "output": row["completion"]}


if __name__ == "__main__":
    each(look)
