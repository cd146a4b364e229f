"""Commands that measure: masks, words, what knowledge does, answers to questions, and the paper's tables at tiny scale."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from pathlib import Path

from tyro.conf import Positional

from ullsam.cli.options import Measured, file_to_write, is_main, load_here, one_of, short, typed
from ullsam.errors import InputError

LENGTHS = {"likelihood": 0, "generate": 64, "official": 1024}  # tokens that a method may write


def evaluate(on: Measured, points: tuple[int, int] | None = None, box: bool = False, no_vlk: bool = False) -> None:
    """Score the masks of a model on folders of images.

    --model may also be a SAM, uSAM or MedSAM file, or a hub name of SAM, SAM-HQ or SAM 2 such as facebook/sam2-hiera-tiny.

    Args:
        points: positive and negative points per object; 1 3 without it
        box: prompt with bounding boxes instead of points
        no_vlk: without vision-language knowledge
    """
    one_of(points=points, box=box)
    from ullsam.accel.distributed import device
    from ullsam.evaluation.protocol import evaluate, mean_scores, summarise
    from ullsam.lab.baselines import open_predictor

    corpora, predictor = on.corpora(), open_predictor(on.model, device=device())
    options = (on.split, "box" if box else points or (1, 3), not no_vlk, on.seed, on.limit)
    results = [evaluate(predictor, corpus, *options, progress=True, keep=on.rows) for corpus in corpora]
    on.write(results, summarise, mean_scores)


def evaluate_words(on: Measured, shuffled: bool = False, text_only: bool = False) -> None:
    """Score the descriptions that a model writes of folders of images.

    Args:
        shuffled: describe images of the next folder instead
        text_only: describe without any image
    """
    one_of(shuffled=shuffled, text_only=text_only)
    if shuffled and len(on.data) < 2:
        raise InputError("--shuffled describes images of another dataset; name at least two folders after --data.")
    from ullsam.evaluation.caption_metrics import evaluate_captions, mean_captions, summarise_captions

    corpora, model = on.corpora(), load_here(on.model)
    others = corpora[1:] + corpora[:1] if shuffled else [None] * len(corpora)
    options = {"split": on.split, "seed": on.seed, "limit": on.limit, "use_image": not text_only, "keep": on.rows}
    pairs = zip(corpora, others, strict=True)
    results = [evaluate_captions(model, corpus, other=other, progress=True, **options) for corpus, other in pairs]
    on.write(results, summarise_captions, mean_captions)


def knowledge(on: Measured, fit_split: str = "train", fit_limit: int = 12, figure: str | None = None) -> None:
    """Measure whether vision-language knowledge changes masks.

    Args:
        fit_split: split that the probes learn from
        fit_limit: at most so many of its images per folder
        figure: PNG file for a figure of the results
    """
    from ullsam.lab.knowledge import measure_knowledge, summarise_knowledge
    from ullsam.plots.charts import show_knowledge

    if figure and Path(figure).suffix.lower() != ".png":
        raise InputError(f"--figure {figure} does not end in .png; the figure is written in this format.")
    corpora, fit = on.corpora(fit_split), {"fit_split": fit_split, "fit_limit": fit_limit}
    result = measure_knowledge(load_here(on.model), corpora, on.split, on.seed, on.limit, **fit, progress=True)
    on.write([result], summarise_knowledge)
    if is_main():
        print("\n".join(result["reading"].values()))
        if figure:
            show_knowledge(result).save(figure)


def worst(data: list[str], results: str, out: str, model: str = "tiny") -> None:
    """Draw the worst case of every folder.

    Args:
        data: folders with images/ and masks/
        results: what `evaluate` wrote about the model on them
        out: PNG file to write
        model: tiny, usam-tiny, or a folder of a saved model
    """
    from ullsam.files import read_json
    from ullsam.lab.figures import worst_cases
    from ullsam.predictor import Predictor

    if not Path(results).is_file():
        raise InputError(f"There is no {results}; write it with `python -m ullsam evaluate ... --out {results}`.")
    measured, corpora = read_json(Path(results)), Measured(data, out).corpora()
    worst_cases(Predictor(load_here(model)), corpora, measured).save(out)
    print(f"The picture is in {out}")


def describe(image: Positional[list[str]], model: str = "tiny", question: str | None = None) -> None:
    """Describe images in words, one line each.

    Args:
        image: image files
        model: tiny, or a folder of a saved model
        question: asked after the image; a description without it
    """
    from ullsam.checkpoints.loading import load
    from ullsam.data.io import read_image

    if not image:
        raise InputError("describe names no image; give the path of at least one.")
    network = load(model)
    for path in image:
        print(f"{path}: {' '.join(network.describe(read_image(path), question).split())}", flush=True)


@dataclass(frozen=True)
class Questions:
    """Who is asked which questions, and how."""

    out: str  # JSON file for the results; answers go beside it
    # tiny, a folder of a saved model, random, or a folder or hub name of a vision-language model of Hugging Face
    model: str = "tiny"
    data: str = "synthetic"  # synthetic, a folder with parquet files, or jmhb/microvqa
    count: int = 300  # number of synthetic questions
    split: str | None = None  # of the data, where there are several
    method: tuple[str, ...] = ("likelihood",)  # likelihood, generate, official
    image: tuple[str, ...] = ("own", "none")  # own, none, shuffled
    seed: int = 0  # of everything that is drawn
    limit: int | None = None  # at most so many questions, evenly spaced; all without it
    max_new_tokens: int | None = None  # of a written answer; 64, official: 1024 without it


def microvqa(ask: Questions) -> None:
    """Ask a model multiple-choice questions about images, by each method and with each kind of image.

    What an earlier run of the same command has answered is not asked again.
    """
    from ullsam.data.corpus import spaced
    from ullsam.data.questions import read_questions, synthetic_questions
    from ullsam.evaluation.statistics import format_table, report
    from ullsam.files import write_json
    from ullsam.lab.microvqa import IMAGES, METHODS, difference, run

    unknown = [x for x in ask.method if x not in METHODS] + [x for x in ask.image if x not in IMAGES]
    if unknown or not ask.method or not ask.image:
        wrong = f"{unknown[0]} is" if unknown else "Nothing is"
        raise InputError(f"{wrong} no method of {', '.join(METHODS)} and no image of {', '.join(IMAGES)}; use one of each.")
    out, runs, differences = file_to_write(ask.out, "microvqa.json"), [], []
    synthetic = ask.data == "synthetic"
    questions = synthetic_questions(ask.count, ask.seed) if synthetic else read_questions(ask.data, ask.split)
    questions, model = spaced(questions, ask.limit), open_model(ask.model, ask.seed)
    for method, image in product(ask.method, ask.image):
        answers, length = out.with_name(f"{out.stem}.{method}.{image}.jsonl"), ask.max_new_tokens or LENGTHS[method]
        result = run(model, questions, method, image, ask.seed, length, answers, progress=True)
        runs.append({"model": short(ask.model), "data": short(ask.data), "answers": answers.name, **result})
        first = next(run for run in runs if run["method"] == method)
        if first is not runs[-1]:
            pair = {"method": method, "first": first["image"], "second": image}
            differences.append(pair | difference(first, runs[-1], ask.seed))
    if not is_main():
        return
    kept = [{k: v for k, v in run.items() if k != "rows"} for run in runs]
    write_json(out, report([{"results": kept, "differences": differences}], typed()))
    print(format_table([answers_row(run) for run in runs]))
    for d in differences:
        between, ends = f"{d['method']}: image {d['first']} minus {d['second']}", "{:+.3f}, {:+.3f}".format(*d["interval"])
        print(f"{between}: {d['mean']:+.3f} [{ends}]")
    print(f"written to {out}")


def answers_row(run: dict) -> dict:
    """What the table shows of one run of `microvqa`."""
    (low, high), tasks = run["interval"], {part["letter"]: part["accuracy"] for part in run["per_task"].values()}
    row = {key: run[key] for key in ("model", "data", "method", "image")} | {"n": run["n_questions"]}
    row |= {"accuracy": run["accuracy"], "95 %": f"{low:.3f}-{high:.3f}", **{letter: tasks.get(letter) for letter in "VHE"}}
    return row | {"chance": run["chance"], "bad": run["bad_response_rate"]}


def open_model(name: str, seed: int = 0):
    """Who answers: "random", a model of ours by name or folder, or a vision-language model of Hugging Face."""
    from ullsam.accel.distributed import device
    from ullsam.files import read_json
    from ullsam.lab.microvqa import RandomGuess
    from ullsam.lab.vlm_baselines import VisionLanguageModel

    if name == "random":
        return RandomGuess(seed)
    folder = Path(name)
    ours = "model_type" not in read_json(folder / "config.json") if folder.is_dir() else len(folder.parts) == 1
    return load_here(name) if ours else VisionLanguageModel.load(name, device())


@dataclass(frozen=True)
class Replication:
    """How much is measured, from what, and where it goes."""

    budget: str = "smoke"  # smoke: half an hour on two cores, one seed; short: three hours, three seeds; full: a night
    seeds: int | None = None  # train each arm so many times; as the budget says without it
    out: str | None = None  # folder of the trained arms; runs/reproduce_BUDGET without it
    results: str | None = None  # JSON file; data/results/reproduce_BUDGET.json without it
    figures: str | None = None  # folder for tables.md and the PNG files; data/results/reproduce_BUDGET without it
    questions: str | None = None  # folder of the results of microvqa, for table6; data/results without it
    # saved model whose SAM all arms start from, for example one that has not learnt from clicks yet; usam-tiny without it
    sam: str | None = None
    data: str | None = None  # folder of all datasets; ULLSAM_DATA without it
    synthetic: bool = False  # synthetic images instead of datasets


def reproduce(tables: Positional[tuple[str, ...]] = (), options: Replication = Replication()) -> None:
    """Measure the paper's tables and figures at tiny scale; what is measured already is not measured again.

    Args:
        tables: table1 .. table6, fig3 .. fig7; all, the most telling first, without a name
    """
    one_of(data=options.data, synthetic=options.synthetic)
    from ullsam.checkpoints.loading import shipped
    from ullsam.data.corpus import data_root
    from ullsam.evaluation.compare import shared_start
    from ullsam.files import whole
    from ullsam.lab import arms, figures, replication, reports, verdicts
    from ullsam.tiny.recipes import load_parts

    o, names, answers, problem = options, tables or tuple(arms.TABLES), (), ""
    if "table6" in names:
        try:
            answers = verdicts.read_answers(o.questions or shipped("results"))
        except InputError as error:
            if tables:  # asked for by name
                raise
            problem = str(error)
    default = f"data/results/reproduce_{o.budget}"
    results, folder = o.results or f"{default}.json", o.figures or default
    words = ["python -m ullsam reproduce", *tables, f"--budget {o.budget}", *["--synthetic"] * o.synthetic]
    words += ([f"--seeds {o.seeds}"] if o.seeds else []) + (["--sam", Path(o.sam).name] if o.sam else [])
    budget, data = replication.budget_of(o.budget, o.seeds), None if o.synthetic else data_root(o.data)
    start = shared_start()
    if o.sam:
        load_parts(start, o.sam)
    job = replication.Reproduction(budget, o.out or f"runs/reproduce_{o.budget}", results, data, start, " ".join(words))
    job.run(names)
    figures.write_figures(job, names, Path(folder), answers or None)
    text = reports.reproduced_tables(job.results, names, answers)
    with whole(Path(folder) / "tables.md") as part:
        part.write_text(f"{text}\n", encoding="utf-8")
    print("\n\n".join(filter(None, (text, problem, f"written to {results} and {folder}"))))
