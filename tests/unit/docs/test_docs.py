"""What the documentation shows holds: commands parse, recipes validate, code compiles, and what is named exists."""

from __future__ import annotations

import ast
import functools
import importlib.util
import json
import re
import shlex
import textwrap
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from luthier import cli, recipe, recipe_file, registry, sweep
from luthier.cli import launching
from luthier.errors import UserErrors

ROOT = Path(__file__).parents[3]
TABLES = sorted([*ROOT.glob("studies/*/table.py"), *ROOT.glob("benchmarks/*/table.py")])
VERBS = typer.main.get_command(cli.app).commands
# Programs of others, whose arguments are not ours to judge.
FOREIGN = {
    "axolotl",
    "cd",
    "git",
    "llamafactory-cli",
    "mlflow",
    "scancel",
    "scontrol",
    "tensorboard",
    "wandb",
}
# Pages that docs/hooks.py makes, by what is in them.
GENERATED = {
    *("index.md", "changelog.md", "contributing.md", "security.md"),
    *(f"reference/{name}.md" for name in ("recipe", "commands", "registered", "faults", "peers-faults", "python", "figures")),
    *("reference/training-speed.md", "reference/state-space-speed.md", "reference/infilling.md", "reference/checks/index.md"),
    *(f"studies/{path.parent.name}.md" for path in ROOT.glob("studies/*/table.py")),
}  # fmt: skip


def module_of(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(path.parent.name.replace("-", "_"), path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def written() -> dict[str, str]:
    """Every page, those that studies and benchmarks write included, by its place in the repository."""
    pages = {name: (ROOT / name).read_text() for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md")}
    pages |= {str(path.relative_to(ROOT)): path.read_text() for path in sorted(ROOT.glob("docs/**/*.md"))}
    return pages | {str(path.relative_to(ROOT)): module_of(path).page() for path in TABLES}


PAGES = written()
each_page = pytest.mark.parametrize("page", PAGES)


def blocks(page: str) -> Iterator[tuple[str, str]]:
    """Language and text of each fenced block."""
    for found in re.finditer(
        r"^( *)```(\w*)\n(.*?)^\1```$", PAGES.get(page, ""), flags=re.MULTILINE | re.DOTALL
    ):
        yield found[2], textwrap.dedent(found[3])


CHECKS = {
    name
    for path in ROOT.glob("src/luthier/check/checks/*.py")
    for name in re.findall(r'^@check\("([\w-]+)"', path.read_text(), flags=re.MULTILINE)
} | set(re.findall(r'"(watch-[\w-]+)"', (ROOT / "src/luthier/train/watchers.py").read_text()))


def inline(page: str) -> list[str]:
    """What stands between single backticks."""
    prose = re.sub(r"^( *)```.*?^\1```$", "", PAGES[page], flags=re.MULTILINE | re.DOTALL)
    return re.findall(r"(?<!`)`([^`\n]+)`(?!`)", prose)


def with_snippets(text: str) -> str:
    """A block with the files that it takes in."""
    return re.sub(r'^--8<-- "([^"]+)"$', lambda name: (ROOT / name[1]).read_text(), text, flags=re.MULTILINE)


def commands(text: str) -> Iterator[list[str]]:
    """Words of each command that a block of a shell shows, without its output."""
    lines = text.replace("\\\n", " ").splitlines()
    prompted = any(re.match(r"\w*\$ ", line) for line in lines)
    for line in lines:
        start = re.match(r"\w*\$ " if prompted else r"(?=(luthier|make|python|pip) )", line)
        if start:
            for part in re.split(r" && | \| ", line[start.end() :]):
                words = shlex.split(part, comments=True)
                yield [word for word in words[: words.index(">") if ">" in words else None] if word != "…"]


def shown_recipes(page: str) -> dict[str, str]:
    """The whole recipes among a page's blocks, by file name."""
    found = {}
    for language, text in blocks(page):
        text = with_snippets(text)
        if language == "yaml" and (name := re.search(r"^name: ([\w-]+)$", text, flags=re.MULTILINE)):
            found[f"{name[1]}.yaml"] = text
    return found


def recipe_named(target: str, page: str, folder: Path) -> str:
    """A recipe to validate overrides on: the page's own, the shipped one of that name (or of that run), or an empty one."""
    file = folder / "recipe.yaml"
    file.write_text(shown_recipes(page).get(target, "name: mine\n"))
    shipped = recipe_file.shipped_recipes()
    target = target.removeprefix("recipes/").removesuffix(".yaml")
    return next((name for name in (target, target.removeprefix("runs/")) if name in shipped), str(file))


def prove_luthier(arguments: list[str], page: str, folder: Path) -> None:
    """Parses a command line of luthier, and validates its recipe with the overrides."""
    if not arguments or arguments[0].startswith("-"):
        assert arguments in (["--help"], ["--version"], []), arguments
        return
    verb, *rest = arguments
    assert verb in VERBS, f"luthier has no verb {verb}"
    given = VERBS[verb].make_context(verb, rest).params
    if verb == "explain":
        assert given["check"] in CHECKS | {"NAME"}
    if verb == "init" and given.get("task"):
        registry.lookup("task", given["task"], page)
    if "recipe" not in given or given["recipe"] is None:
        return
    overrides = list(given.get("overrides") or ())
    if verb == "launch":
        _, overrides = launching.told_apart(given["slurm"], overrides)
    named = recipe_named(given["recipe"], page, folder)
    recipe_file.load(named, overrides)
    for key, values in sweep.axes(given.get("sweep") or ()).items():
        for value in values:
            recipe_file.load(named, [*overrides, f"{key}={value}"])


def prove(words: list[str], page: str, folder: Path) -> None:
    """Fails unless a command is one that can be given."""
    while words and "=" in words[0]:  # variables of the environment
        words = words[1:]
    program, *arguments = words
    if program in ("luthier", ".venv/bin/luthier"):
        prove_luthier(arguments, page, folder)
    elif program == "make":
        for target in arguments:
            assert "=" in target or re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
    elif program == "python":
        script = (ROOT / arguments[0]).read_text()
        options = [word.partition("=")[0] for word in arguments[1:] if word.startswith("--")]
        assert all(f'"{option}"' in script for option in options), f"{words}: no such option"
    elif program == "pip":
        extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
        for word in arguments[1:]:
            if named := re.fullmatch(r"(?:luthier|\.)\[([\w,]+)\]", word):
                assert set(named[1].split(",")) <= set(extras), word
            elif "/" in word:
                assert (ROOT / word).exists(), word
    else:
        assert program in FOREIGN, f"unknown program: {words}"


@each_page
def test_commands_can_be_given(page: str, tmp_path: Path) -> None:
    """One that is shown with its mistake makes that mistake."""
    for language, text in blocks(page):
        if language not in ("", "console", "bash"):
            continue
        for words in commands(text):
            if "\n  where: " in text:
                with pytest.raises(UserErrors) as mistake:
                    prove(words, page, tmp_path)
                assert str(mistake.value) in text
            else:
                prove(words, page, tmp_path)


@pytest.mark.parametrize("path", sorted(ROOT.glob("recipes/**/*.yaml")), ids=lambda path: path.stem)
def test_commands_in_the_comments_of_recipes_can_be_given(path: Path, tmp_path: Path) -> None:
    comments = [line.partition("#")[2] for line in path.read_text().splitlines() if "#" in line]
    for comment in comments:
        for found in re.findall(r"(?:^|[ (:])(?:luthier|python) [a-z].*", comment):
            command = re.split(r"\s{2,}|, or | \(|\.\.\.", found.strip(" (:"))[0].replace("COMMIT", "f" * 40)
            prove(shlex.split(command, comments=True), str(path), tmp_path)


def test_commands_in_the_help_can_be_given(tmp_path: Path) -> None:
    for verb in VERBS.values():
        for line in re.findall(r"^ *\[dim\]\$\[/\] (.*)$", verb.help or "", flags=re.MULTILINE):
            for part in line.replace("[dim]", "").replace("[/]", "").split(" | "):
                words = shlex.split(part.partition(" > ")[0])
                if words[0] == "luthier":
                    prove(words, "help", tmp_path)


def merged(base: Any, own: Any) -> Any:
    """A part of a recipe laid over a whole one; a task or source of another type replaces."""
    if (
        not isinstance(base, dict)
        or not isinstance(own, dict)
        or own.get("type", base.get("type")) != base.get("type")
    ):
        return own
    return {**base, **{key: merged(base.get(key), value) for key, value in own.items()}}


@each_page
def test_recipes_validate(page: str) -> None:
    """A block of YAML is a recipe, or goes into one of the page's: the one that the page shows whole, or any task's."""
    whole = [
        yaml.safe_load((ROOT / path).read_text())
        for path in re.findall(r'"(recipes/[\w./-]+\.yaml)"', PAGES[page])
    ]
    tasks = [{"task": {"type": name}} for name in registry.registered("task")]
    for language, text in blocks(page):
        if language != "yaml" or "tests/plugin_example" in text:  # which its own test installs and runs
            continue
        part = yaml.safe_load(with_snippets(text))
        if part is None:  # a comment alone
            continue
        told = []
        for base in ({}, *whole, *tasks):
            try:
                recipe.validate(merged(base, part))
                break
            except UserErrors as errors:
                told.append(str(errors))
        else:
            pytest.fail(f"{page}: no recipe has this:\n{text}\n{told[0]}")


@each_page
def test_code_and_data_are_well_formed(page: str) -> None:
    for language, text in blocks(page):
        text = with_snippets(text)
        if language == "python":
            names = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Attribute)]
            import luthier

            for node in names:
                if isinstance(node.value, ast.Name) and node.value.id == "luthier" and node.attr != "models":
                    assert node.attr in luthier.__all__, f"luthier.{node.attr}"
        elif language == "json":
            for one in [text] if text.startswith("{\n") else text.replace(",\n ", ", ").splitlines():
                json.loads(one)
        elif language == "toml":
            tomllib.loads(text)
        else:
            assert language in ("", "console", "bash", "text", "yaml"), f"{page}: a block in {language!r}"


@each_page
def test_snippets_are_there(page: str) -> None:
    for path in re.findall(r'--8<-- "([^"]+)"', PAGES[page]):
        assert (ROOT / path).is_file(), path


def test_the_tutorial_shows_the_recipe_that_is_run() -> None:
    assert (ROOT / "docs/examples/my-code.yaml").read_text() in (ROOT / "docs/tutorial.md").read_text()


@functools.cache
def schema() -> dict[str, Any]:
    return recipe.schema()


@functools.cache
def is_key(path: str) -> bool:
    """Whether a recipe can have a key of that path, of any task and source."""
    nodes: list[Any] = [schema()]
    for part in path.split("."):
        found = []
        while nodes:
            node = nodes.pop()
            if "$ref" in node:
                nodes.append(schema()["$defs"][node["$ref"].rpartition("/")[2]])
            nodes += [one for union in ("anyOf", "oneOf", "allOf") for one in node.get(union, [])]
            found += [node["properties"][part]] if part in node.get("properties", {}) else []
            extra = node.get("additionalProperties")
            found += [extra] if isinstance(extra, dict) else []
        nodes = found
    return bool(nodes)


SECTIONS = "task|model|data|train|evaluate|check|repair"
OTHERS = (
    "model.config.",
    "model.accepts_loss_kwargs",
    "train.txt",
)  # attributes of transformers' models, files


@each_page
def test_keys_that_are_named_exist(page: str) -> None:
    for code in inline(page):
        for path in re.findall(rf"^((?:{SECTIONS})\.[a-z_]+(?:\.[a-z_]+)*)(?:=.*|: .*)?$", code):
            file = path.rpartition(".")[2] in ("html", "json", "jsonl", "safetensors", "yaml")
            assert file or path.startswith(OTHERS) or is_key(path), f"{page}: no key {path}"


@each_page
def test_files_and_names_of_code_exist(page: str) -> None:
    file = ""
    for code in inline(page):
        if re.fullmatch(r"(src|tests|docs|recipes|studies|benchmarks)/[\w./-]+(::\w+)?", code):
            path, _, name = code.partition("::")
            assert (ROOT / path).exists(), f"{page}: {path}"
            file = path
            assert not name or f"def {name}(" in (ROOT / path).read_text(), f"{page}: {code}"
        elif code.startswith("::"):
            assert f"def {code[2:]}(" in (ROOT / file).read_text(), f"{page}: {file}{code}"
        elif match := re.fullmatch(r"(luthier(?:\.\w+)+)(\(.*\))?", code):
            assert exists(match[1]), f"{page}: {code}"


def exists(dotted: str) -> bool:
    """Whether a dotted name of the package is a module, or a top-level name in one, without importing it."""
    import luthier

    parts = dotted.split(".")
    if len(parts) == 2 and parts[1] in luthier.__all__:
        return True
    for place in (ROOT.joinpath("src", *parts), ROOT.joinpath("src", *parts[:-1])):
        file = place.with_suffix(".py") if place.with_suffix(".py").is_file() else place / "__init__.py"
        if file.is_file():
            name = "" if place.name == parts[-1] else parts[-1]
            return (
                not name
                or re.search(rf"^(def|class) {name}\b|^{name}\b.*=", file.read_text(), re.MULTILINE)
                is not None
            )
    return False


@each_page
def test_commands_named_in_prose_exist(page: str, tmp_path: Path) -> None:
    """A verb, and options that it has; what else stands behind it may be cut short."""
    for code in inline(page):
        if found := re.match(r"luthier ([a-z]+)\b(.*)", code):
            assert found[1] in VERBS, f"{page}: {code}"
            known = {option for parameter in VERBS[found[1]].params for option in parameter.opts}
            for option in re.findall(r"(?<!\S)(--?[a-z][\w-]*)", found[2]):
                assert option in known, f"{page}: {code}"
        elif found := re.match(r"make ([a-z-]+)$", code):
            prove(["make", found[1]], page, tmp_path)


def slug(heading: str) -> str:
    """The anchor of a heading, as Markdown's toc makes it."""
    text = re.sub(r"`|\[([^\]]*)\]\([^)]*\)", r"\1", heading)
    return re.sub(r"[\s-]+", "-", re.sub(r"[^\w\s-]", "", text).strip().lower())


@each_page
def test_links_lead_somewhere(page: str) -> None:
    """Files and anchors of written pages; of generated ones that there is such a page."""
    here = ROOT / page
    if page.startswith("studies/"):
        here = ROOT / "docs" / f"{Path(page).parent}.md"
    elif page.startswith("benchmarks/"):
        here = ROOT / "docs/reference" / Path(page).parent.name
    for target in re.findall(r"\]\(([^)\s]+)\)", PAGES[page]):
        if target.startswith(("http", "mailto:")):
            continue
        path, _, anchor = target.partition("#")
        if not path and page.endswith("table.py"):
            continue  # within a generated page: mkdocs looks at these
        file = (here.parent / path).resolve() if path else here
        name = str(file.relative_to(ROOT / "docs")) if file.is_relative_to(ROOT / "docs") else ""
        if name.startswith("reference/checks/") and name not in GENERATED:
            assert file.stem in CHECKS, f"{page}: {target}"
            continue
        if name in GENERATED:
            continue
        assert file.exists(), f"{page}: {target}"
        if anchor and file.suffix == ".md":
            text = PAGES[str(file.relative_to(ROOT))]
            headings = re.findall(r"^#+ (.*)$", text, flags=re.MULTILINE)
            assert anchor in map(slug, headings) or f'id="{anchor}"' in text, f"{page}: {target}"


def test_the_tables_of_the_readme_are_of_the_results() -> None:
    readme = module_of(ROOT / "docs/readme.py")
    assert readme.with_tables(PAGES["README.md"]) == PAGES["README.md"], "run: make readme"
    tasks = (
        re.findall(r'^@task\("([\w-]+)"', path.read_text(), re.MULTILINE)
        for path in ROOT.glob("src/luthier/tasks/*.py")
    )
    assert set(readme.TASKS) == {name for names in tasks for name in names}
    named = {recipe for _, _, recipe, _, _ in readme.TASKS.values()}
    assert named <= set(recipe_file.shipped_recipes())


def test_a_figure_that_was_not_measured_is_left_out() -> None:
    readme = module_of(ROOT / "docs/readme.py")
    form = "{a/b:%} of {c:.2f}"
    assert readme.measured(form, {"a/b": [0.5, 0.4, 0.6], "c": 2}) == "50.0% of 2.00"
    assert readme.measured(form, {"c": 2}) == ""


def test_the_site_has_every_page_in_its_navigation() -> None:
    listed = set(re.findall(r"^ +- ([\w/-]+\.md)$", (ROOT / "mkdocs.yml").read_text(), flags=re.MULTILINE))
    pages = {str(path.relative_to(ROOT / "docs")) for path in ROOT.glob("docs/**/*.md")} | GENERATED
    assert pages <= listed, f"not in mkdocs.yml: {sorted(pages - listed)}"
