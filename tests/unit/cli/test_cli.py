"""The command table: every kind of command line is understood, wrong ones are one sentence, and help loads nothing heavy."""

import ast
import json
import re
import shlex
import subprocess
import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import pytest

from ullsam.cli import COMMANDS, main, measure, parse, prepare, train
from ullsam.cli.options import Measured

ROOT = Path(__file__).parents[3]
DOCUMENTS = ("README.md", "CONTRIBUTING.md", "data/README.md", "docs/*.md", "data/weights/README.md", "notebooks/*.ipynb")
QUOTED = re.compile(r"(?:python -m ullsam|accelerate launch[\w \-]* -m ullsam) [^`\"\\#|\n]+")


def arguments(line):
    command = parse(shlex.split(line))
    return command.func, command.keywords


@pytest.mark.parametrize(
    ("line", "function", "expected"),
    [
        ("demo --out data/results", "demo", {"out": "data/results", "model": "tiny"}),
        ("app --host 0.0.0.0 --port 80 --browser", "app", {"host": "0.0.0.0", "port": 80, "sessions": 8, "browser": True}),
        (
            "describe a.png b.png --model m --question 'What is this?'",
            "describe",
            {"image": ["a.png", "b.png"], "model": "m"},
        ),
        ("describe --model m a.png", "describe", {"image": ["a.png"], "question": None}),
        ("evaluate --data a b c --out=r", "evaluate", {"on": Measured(["a", "b", "c"], "r"), "points": None, "box": False}),
        ("evaluate --data a --out r --points 1 0 --no-vlk", "evaluate", {"points": (1, 0), "no_vlk": True}),
        (
            "evaluate --model usam-tiny --data a --split test --limit 20 --seed 3 --box --out r",
            "evaluate",
            {"on": Measured(["a"], "r", "usam-tiny", "test", 3, 20), "box": True, "no_vlk": False},
        ),
        ("evaluate-words --data a b --out r --shuffled", "evaluate_words", {"shuffled": True, "text_only": False}),
        ("evaluate-words --data a --out r --text-only", "evaluate_words", {"shuffled": False, "text_only": True}),
        (
            "knowledge --data a --split val --limit 2 --fit-limit 6 --fit-split train --out k --figure k.png",
            "knowledge",
            {"fit_split": "train", "fit_limit": 6, "figure": "k.png"},
        ),
        ("worst --data a b --results r.json --out w.png", "worst", {"data": ["a", "b"], "results": "r.json"}),
        (
            "microvqa --model m --data jmhb/microvqa --method likelihood official --image own none shuffled --out v",
            "microvqa",
            {
                "ask": measure.Questions(
                    "v", "m", "jmhb/microvqa", 300, None, ("likelihood", "official"), ("own", "none", "shuffled")
                )
            },
        ),
        ("train ullsam-tiny", "train", {"recipe": "ullsam-tiny", "out": "runs"}),
        ("train --out here ullsam-tiny --data d", "train", {"recipe": "ullsam-tiny", "data": train.Data("d")}),
        (
            "train --preset paper --stage 1 --sam s --llm OpenGVLab/InternVL2_5-2B --data pairs --lora 4 --dtype bfloat16",
            "train",
            {
                "recipe": None,
                "stage": 1,
                "model": train.Model("paper", None, "s", "OpenGVLab/InternVL2_5-2B", None, 4, "bfloat16"),
                "data": train.Data("pairs"),
                "settings": train.Settings(),
            },
        ),
        (
            "train --preset tiny --stage 3 --start f --synthetic-fraction 0.25 --lr 1e-4 --batch-size 2 --view 0",
            "train",
            {
                "model": train.Model("tiny", "f"),
                "data": train.Data(None, False, 0.25),
                "settings": train.Settings(lr=1e-4, batch_size=2, view=0),
            },
        ),
        ("train --preset debug --stage 3 --synthetic --steps 2", "train", {"data": train.Data(None, True)}),
        ("log-run runs/a --note 'half the rate'", "log_run", {"folder": "runs/a", "note": "half the rate", "limit": None}),
        ("ship ullsam-tiny --out runs", "ship", {"recipe": "ullsam-tiny", "out": "runs"}),
        ("reproduce", "reproduce", {"tables": (), "options": measure.Replication()}),
        (
            "reproduce fig5 fig6 --budget short --seeds 2 --synthetic --out=o",
            "reproduce",
            {"tables": ("fig5", "fig6"), "options": measure.Replication("short", 2, "o", synthetic=True)},
        ),
        ("prepare-data open --out CORPORA", "prepare_data", {"name": "open", "out": "CORPORA", "seed": 0}),
        (
            "prepare-pairs --out p --images 5 --shards a.tar b.tar",
            "prepare_pairs",
            {"images": 5, "shards": ("a.tar", "b.tar")},
        ),
        ("caption f --base-url http://h/v1 --timeout 0.5", "caption", {"folder": "f", "timeout": 0.5, "workers": 8}),
        ("make-questions out --count 9 --seed 1", "make_questions", {"out": "out", "count": 9, "seed": 1}),
        (
            "convert --sam vit.pth --llm f --out new",
            "convert",
            {"sam": "vit.pth", "llm": "f", "out": "new", "dtype": "float32"},
        ),
        ("parity folder --tolerance 0.1", "parity", {"folder": "folder", "tolerance": 0.1}),
    ],
)
def test_a_command_line_becomes_a_function_and_its_arguments(line, function, expected):
    called, options = arguments(line)
    assert called.__name__ == function and called is COMMANDS[line.split()[0]]
    assert {name: options[name] for name in expected} == expected


def quoted_commands():
    """Every command line that documents, notebooks and results files quote, without what stands for the reader's words."""
    lines = set()
    for pattern in DOCUMENTS:
        for path in sorted(ROOT.glob(pattern)):
            lines |= set(QUOTED.findall(path.read_text("utf-8")))
    for path in sorted((ROOT / "data" / "results").glob("*.json")):
        lines |= set(QUOTED.findall(str(json.loads(path.read_text("utf-8")).get("command"))))
    told = re.compile(r" --note \.\.\.|\.\.\.|\[FOLDER \]|-->|--stage N")  # dots and other hints to the reader
    whole = {told.sub(" ", line.split("-m ullsam ")[1]).strip() for line in lines}
    return sorted(line for line in whole if len(line.split()) > 1 and not line.startswith("COMMAND "))


@pytest.mark.parametrize("line", quoted_commands())
def test_what_the_documents_quote_is_understood(line):
    words = shlex.split(line.rstrip(".,;:)"))
    missing = {
        "microvqa": ["--out", "v"],
        "knowledge": ["--data", "a", "--out", "k"],
        "evaluate-words": ["--data", "a", "--out", "w"],
    }
    missing["evaluate"], missing["log-run"] = missing["evaluate-words"], ["--note", "n"]
    extra = missing.get(words[0], [])
    for option, *values in (extra[i : i + 2] for i in range(0, len(extra), 2)):
        words += [] if option in words else [option, *values]
    assert parse(words).func is COMMANDS[words[0]]


def test_help_names_every_command_and_loads_nothing_heavy():
    heavy = ("torch", "transformers", "accelerate", "matplotlib", "cv2", "scipy", "pandas")
    loaded = f"print(*sorted({{*{heavy}}} & {{*sys.modules}}), file=sys.stderr)"
    code = f"import sys, ullsam.cli\ntry: ullsam.cli.main(['--help'])\nfinally: {loaded}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env={"COLUMNS": "200"})
    assert done.returncode == 0 and not done.stderr.strip()
    assert all(name in done.stdout for name in COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_for_every_option(name, capsys):
    with pytest.raises(SystemExit) as stop:
        main([name, "--help"])
    assert stop.value.code == 0
    said = capsys.readouterr().out
    for option in re.findall(r"^[│ ]+(--[\w-]+)[^│]*│$", said, re.MULTILINE):
        rest = said.split(f" {option}")[-1].split("│ --")[0]
        assert re.search(r"[a-z]{2,}.*\(?(required|default)?", rest), option
    assert COMMANDS[name].__doc__.splitlines()[0].split(";")[0][:60] in " ".join(said.split())


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["segment"],
        ["evaluate", "--data", "a"],
        ["evaluate", "--data", "a", "--out", "b", "--point", "1", "3"],
        ["evaluate", "--data", "a", "--out", "b", "--points", "1"],
        ["train", "--preset", "debug", "--stage", "one"],
        ["train", "--preset", "debug", "--stage", "1", "--dtype", "float16"],
    ],
)
def test_what_is_no_command_line_ends_with_code_2(words, capsys):
    with pytest.raises(SystemExit) as stop:
        main(words)
    assert stop.value.code == 2
    printed = capsys.readouterr()
    assert printed.err and not printed.out


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["evaluate", "--data", "a", "--out", "b", "--box", "--points", "1", "0"], "--points and --box exclude each other"),
        (["evaluate-words", "--data", "a", "--out", "b", "--shuffled", "--text-only"], "--shuffled and --text-only exclude"),
        (["reproduce", "--data", "a", "--synthetic"], "--data and --synthetic exclude each other; give one of them."),
        (["train", "--preset", "debug", "--stage", "3", "--data", "a", "--synthetic"], "--data and --synthetic exclude"),
        (
            ["train", "--preset", "debug", "--stage", "3", "--synthetic", "--synthetic-fraction", "0.5"],
            "--synthetic and --synthetic-fraction exclude each other",
        ),
        (["evaluate", "--data", "--out", "b"], "--data names no folder"),
        (["describe"], "describe names no image"),
        (
            ["train", "--preset", "debug", "--stage", "3", "--synthetic", "--log-every", "0"],
            "--log-every is 0; give a number",
        ),
        (["train", "--preset", "debug", "--stage", "3", "--synthetic", "--lr", "nan"], "--lr is nan; give a number from 0"),
        (
            ["train", "--preset", "debug", "--stage", "3", "--synthetic", "--seed", "-1"],
            "--seed is -1; give a number from 0",
        ),
        (["train", "--preset", "debug", "--stage", "3", "--synthetic", "--lora", "-1"], "--lora is -1"),
        (["train", "--preset", "debug", "--stage", "3", "--synthetic-fraction", "1.5"], "--synthetic-fraction is 1.5"),
        (["evaluate", "--data", "a", "--out", "b", "--limit", "0"], "--limit is 0; give a number from 1 to"),
        (["evaluate", "--data", "a", "--out", "b", "--seed", str(2**31)], f"--seed is {2**31}; give a number from 0 to"),
        (["microvqa", "--out", "v", "--count", "0"], "--count is 0"),
        (["caption", "f", "--base-url", "http://h/v1", "--timeout", "nan"], "--timeout is nan; give a number from 1e-06"),
        (["app", "--port", "70000"], "--port is 70000; give a number from 1 to 65535"),
        (["parity", "f", "--tolerance", "inf"], "--tolerance is inf"),
    ],
)
def test_options_that_do_not_go_together_or_cannot_be_used_are_one_sentence(words, sentence, capsys):
    assert main(words) == 2
    error = capsys.readouterr().err
    assert error.startswith("ullsam: ") and sentence in error and error.count("\n") == 1


def test_what_the_file_system_refuses_is_one_sentence(tmp_path, capsys, monkeypatch):
    def refuse(number, text):
        def fail(*_):
            raise OSError(number, text)

        monkeypatch.setattr("ullsam.data.questions.synthetic_questions", fail)

    (tmp_path / "file").write_text("in the way")
    line = ["train", "--preset", "debug", "--stage", "3", "--synthetic", "--out", str(tmp_path / "file")]
    assert main(line) == 2
    assert "debug-stage3 cannot be used (Not a directory); check the path" in capsys.readouterr().err
    refuse(28, "No space left on device")
    assert main(["make-questions", str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith("ullsam: A file could not be written (No space left on device); check")
    refuse(98, "Address already in use")  # no file's fault
    with pytest.raises(OSError, match="in use"):
        main(["make-questions", str(tmp_path)])


def test_what_is_printed_while_it_runs_is_seen_at_once():
    assert prepare.say.keywords == {"flush": True}


def test_what_commands_import_when_they_run_is_there():
    for path in sorted((ROOT / "ullsam" / "cli").glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module.startswith("ullsam."):
                module = import_module(node.module)
                lost = [
                    a.name
                    for a in node.names
                    if not hasattr(module, a.name) and not find_spec(f"{module.__name__}.{a.name}")
                ]
                assert not lost, f"{path.name}:{node.lineno}: {node.module} has no {', '.join(lost)}"
