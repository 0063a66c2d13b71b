"""A run: data read, model trained, judged beside baselines, saved with its card and its curve."""

import dataclasses
import hashlib
import io
import json
import logging
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.csv
import torch
from datasets import Dataset, DatasetDict
from matplotlib.figure import Figure
from tqdm.auto import tqdm
from transformers import (
    AutoConfig,
    AutoModelForMaskedLM,
    AutoTokenizer,
    EvalPrediction,
    PreTrainedModel,
    PrinterCallback,
    ProgressCallback,
    Trainer,
    TrainerCallback,
    set_seed,
)

from ..data.candidates import popularity_candidates, uniform_candidates
from ..data.interactions import load_interactions, load_titles, rename_items
from ..data.sources import is_embedded
from ..data.splits import SPLITS
from ..data.tokenization import ItemTokenizer, item_tokenizer
from ..evaluation.baselines import MarkovChain, Popularity
from ..evaluation.ranking import Sampled, bootstrap_interval, ndcg_gains
from ..evaluation.trainer_evaluation import rank_rows
from ..hub.checkpoint import (
    CURVE,
    check_folder,
    check_sizes,
    fetch_checkpoint,
    last_complete_checkpoint,
    save_checkpoint,
)
from ..hub.model_card import results_table
from ..hub.push import push_checkpoint
from ..hub.run_facts import DataFacts, RunFacts
from ..inference.pipeline import NextItemRecommendationPipeline, pipeline
from ..models.registry import ARCHITECTURES
from ..training.objectives import cloze_training, next_item_training
from ..training.resources import check_memory, estimate_memory
from ..training.trainer import RecommendationTrainer
from ..training.transfer import transfer
from .recipe import Recipe

logger = logging.getLogger(__name__)

EMBEDDED_TERMS = (
    "MovieLens (GroupLens, University of Minnesota): no commercial use without permission, redistribution under the "
    "same terms, please cite Harper and Konstan, 2015, doi:10.1145/2827872."
)
WITHOUT_WEIGHTS = (
    "hidden_dropout_prob",
    "attention_probs_dropout_prob",
    "loss",
    "loss_chunk_size",
    "num_negatives",
    "share_negatives",
    "exclude_history",
    "gbce_calibration",
)
"""Options of a model that one may change when it goes on from a checkpoint."""

RESTORED = ("seed", "learning_rate", "weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon")
"""Options of the training that a run cannot change half-way: the state of its optimiser has them, and its rows."""

WHOLE_HISTORY = 2**31 - 1  # longer than any


def prepare(recipe: Recipe, tokenizer: ItemTokenizer | None = None) -> tuple[Dataset, ItemTokenizer, DatasetDict]:
    """Read, filter, encode and split the data of a recipe.

    Args:
        recipe: Says how.
        tokenizer: That of a checkpoint to evaluate; built from what may be trained on if not given.

    Returns:
        Interactions, tokenizer and histories.

    Raises:
        ValueError: A time is missing, or the data cannot be used as the recipe says.
    """
    run = recipe.run
    split, options = SPLITS[run.split], dataclasses.asdict(recipe.splitting)
    split.resolve(options)
    interactions = load_interactions(run.data, **dataclasses.asdict(recipe.reading))
    names = load_titles(run.item_ids, item=0, title=1) if run.item_ids else None
    if names is not None:
        interactions = rename_items(interactions, names)
    if tokenizer is None:
        titles = load_titles(run.titles) if run.titles else None
        if names is not None and titles is not None:  # both tables name the items as the log does
            if untitled := set(names) - set(titles):  # else numbers of the catalogue could be taken for the log's
                raise ValueError(
                    f"{run.titles}: with item_ids expected a title for each of the log's own ids, found none for "
                    f"{len(untitled)}, such as {min(untitled)!r}."
                )
            titles = {names[item]: title for item, title in titles.items() if item in names}
        tokenizer = item_tokenizer(split.past_of(interactions, options), titles=titles, max_length=run.max_length)
    histories = _split(recipe, interactions, tokenizer)
    for name in set(histories) - {"train"}:
        histories[name] = _with_candidates(recipe, interactions, tokenizer, histories[name])
    logger.info("Histories: %s.", ", ".join(f"{rows.num_rows:,} rows to {name}" for name, rows in histories.items()))
    return interactions, tokenizer, histories


def _with_candidates(recipe: Recipe, interactions: Dataset, tokenizer: ItemTokenizer, rows: Dataset) -> Dataset:
    by_popularity, uniformly = recipe.run.popularity_candidates, recipe.run.uniform_candidates
    if by_popularity and uniformly:
        raise ValueError("Expected popularity_candidates or uniform_candidates, found both: one of them must be 0.")
    if by_popularity:
        items = tokenizer.encode_items(interactions.with_format("arrow")[:]["item"])
        return popularity_candidates(rows, np.bincount(items, minlength=len(tokenizer)), by_popularity)
    return uniform_candidates(rows, len(tokenizer), uniformly) if uniformly else rows


def whole_histories(recipe: Recipe, interactions: Dataset, tokenizer: ItemTokenizer) -> Dataset:
    """The training split of a recipe with one row a user, whatever its length: for counting."""
    return _split(recipe, interactions, tokenizer, max_length=WHOLE_HISTORY)["train"]


def _split(
    recipe: Recipe, interactions: Dataset, tokenizer: ItemTokenizer, max_length: int | None = None
) -> DatasetDict:
    split = SPLITS[recipe.run.split]
    options = split.resolve(dataclasses.asdict(recipe.splitting))
    return split.function(interactions, tokenizer, max_length=max_length, **options)


def protocol(recipe: Recipe, items: int) -> tuple[str, str | None]:
    """What every figure of a run must be read with: of the whole catalogue, and, if any, those among candidates."""
    held_out = SPLITS[recipe.run.split].describe(dataclasses.asdict(recipe.splitting))
    history = "excluded" if recipe.model.exclude_history else "not excluded"
    number = recipe.run.popularity_candidates or recipe.run.uniform_candidates
    drawn = {"uniform_sampled": "uniformly", "popularity_sampled": "by their popularity in the whole log"}
    return (
        f"{held_out}, ranked among all {items:,} items, history {history}",
        f"{held_out}, ranked among {number} items drawn for each user {drawn[sampled_by(recipe)]}, history excluded"
        if number
        else None,
    )


def sampled_by(recipe: Recipe) -> Sampled:
    """How the candidates of a recipe are drawn, where it has any."""
    return "uniform_sampled" if recipe.run.uniform_candidates else "popularity_sampled"


def trainer_for(recipe: Recipe, tokenizer: ItemTokenizer, histories: DatasetDict) -> Trainer:
    """The stock Trainer of a recipe, with a new model in it, ready to train.

    Raises:
        MemoryError: The model cannot fit.
        ValueError: An option is out of range.
    """
    args = recipe.training
    set_seed(args.seed)
    source = None if recipe.run.start_from is None else fetch_checkpoint(recipe.run.start_from)
    if source is not None:
        config = AutoConfig.from_pretrained(source, vocab_size=len(tokenizer))
    else:
        options = named_options(recipe)
        sizes = {"vocab_size": len(tokenizer), "max_position_embeddings": tokenizer.model_max_length}
        config = AutoConfig.for_model(recipe.run.architecture, **sizes, **options)
    with torch.device("meta"):  # nothing is allocated
        shapes = AutoModelForMaskedLM.from_config(config)
    check_memory(estimate_memory(shapes, args.per_device_train_batch_size, 1))
    model = AutoModelForMaskedLM.from_config(config) if source is None else started_from(recipe, source, tokenizer)
    validation = histories.get("validation")
    if validation is None:  # folded into train: nothing to choose a checkpoint by
        args.eval_strategy, args.load_best_model_at_end = "no", False
    trainer = RecommendationTrainer(
        model, args, train_dataset=histories["train"], eval_dataset=validation, **_setup(recipe, tokenizer)
    )
    trainer.remove_callback(PrinterCallback if args.disable_tqdm else ProgressCallback)
    trainer.add_callback(EpochLines if args.disable_tqdm else EpochLinesWithBar)
    return trainer


def named_options(recipe: Recipe) -> dict[str, Any]:
    """The options of the model that a recipe names; the others are the defaults of the model's own configuration."""
    return {name: value for name, value in dataclasses.asdict(recipe.model).items() if name in recipe.options}


def started_from(recipe: Recipe, source: Path, tokenizer: ItemTokenizer) -> PreTrainedModel:
    """The model of a checkpoint for the catalogue of `tokenizer`, with dropout and loss as the recipe names them.

    What decides about weights is the checkpoint's; where the recipe says otherwise it is told, and mended.

    Raises:
        ValueError: It is of another architecture, or nothing can be taken over.
    """
    model, its_tokenizer = AutoModelForMaskedLM.from_pretrained(source), AutoTokenizer.from_pretrained(source)
    check_sizes(model, its_tokenizer)
    if model.config.model_type != recipe.run.architecture:
        raise ValueError(
            f"{source} is a {model.config.model_type}, the recipe's architecture {recipe.run.architecture}."
        )
    given = named_options(recipe)
    changes = {name: value for name, value in given.items() if name in WITHOUT_WEIGHTS}
    overruled = [name for name in given.keys() - changes if given[name] != getattr(model.config, name)]
    if overruled:
        recipe.options |= {name: getattr(model.config, name) for name in overruled}
        told = ", ".join(f"{name} {recipe.options[name]}" for name in sorted(overruled))
        logger.warning("%s decides about the weights, not the recipe: %s.", source, told)
    return transfer(model, its_tokenizer, tokenizer, recipe.run.match_items, **changes)


def run(recipe: Recipe) -> Path | None:
    """Train by a recipe and save a complete checkpoint, `model/` in the output folder, with the curve beside the card.

    Returns:
        The folder of the checkpoint; None in all processes but the first.

    Raises:
        MemoryError: The model cannot fit.
        ValueError: An option is out of range, or the data cannot be used as the recipe says.
    """
    args = recipe.training
    interactions, tokenizer, histories = prepare(recipe)
    trainer = trainer_for(recipe, tokenizer, histories)

    data = describe_data(recipe, interactions)
    checkpoint = checkpoint_to_resume(recipe, str(data.sha256))
    trainer.train(resume_from_checkpoint=checkpoint)
    known = trainer.run_facts()

    evaluated = {split: rows for split, rows in histories.items() if split != "train"}
    whole = whole_histories(recipe, interactions, tokenizer)
    models = {
        "Popularity": Popularity(whole, len(tokenizer)),
        "Markov chain, first order": MarkovChain(whole, len(tokenizer)),
        ARCHITECTURES[recipe.run.architecture].name: trainer,
    }
    metrics: dict[str, dict[str, dict[str, float]]] = {split: {} for split in evaluated}
    intervals: dict[str, dict[str, Any]] = {split: {} for split in evaluated}
    for name, judged in models.items():
        judge = judged if isinstance(judged, Trainer) else evaluator(judged, recipe, tokenizer, evaluated["test"])
        for split, rows in evaluated.items():
            metrics[split][name], intervals[split][name] = judge_on(judge, rows)
    whole_catalog, among_candidates = protocol(recipe, len(tokenizer.items))
    facts = RunFacts(
        model=ARCHITECTURES[recipe.run.architecture].name,
        name=recipe.run.name or Path(args.output_dir).name,
        data=data,
        protocol=whole_catalog,
        sampled_protocol=among_candidates,
        exclude_history=trainer.model.config.exclude_history,
        results=metrics,
        intervals=intervals,
        example=[str(item) for item in recipe.run.example or tokenizer.items[:3].to_pylist()],
        titles=tokenizer.titles is not None,
        recipe=recipe.options,
        reproducible=True,
        seconds=known.seconds,
        best_checkpoint=known.best_checkpoint,
        chosen_by=known.chosen_by,
        machine=known.machine,
        versions=known.versions,
        log=known.log,
    )
    if not trainer.is_world_process_zero():
        return None
    folder = Path(args.output_dir, "model")
    save_checkpoint(folder, trainer.model, tokenizer, facts, {CURVE: draw_curve(facts)})
    for intermediate in Path(args.output_dir).glob("checkpoint-*"):  # only an interrupted run has a use for them
        shutil.rmtree(intermediate)
    if args.push_to_hub:
        where = {"private": args.hub_private_repo, "token": args.hub_token, "revision": args.hub_revision}
        logger.info("Pushed: %s", push_checkpoint(folder, trainer.hub_model_id, **where))
    return folder


def evaluator(model: torch.nn.Module, recipe: Recipe, tokenizer: ItemTokenizer, rows: Dataset) -> Trainer:
    """A stock Trainer that only evaluates `model`, the way a run does.

    Raises:
        ValueError: Model and tokenizer are of different catalogues.
    """
    if isinstance(model, PreTrainedModel):
        check_sizes(model, tokenizer)
        if "exclude_history" in recipe.options:
            model.config.exclude_history = recipe.model.exclude_history
    else:
        model.exclude_history = recipe.model.exclude_history
    judge = Trainer(model, recipe.training, eval_dataset=rows, **_setup(recipe, tokenizer))
    judge.remove_callback(PrinterCallback)
    return judge


def evaluate(
    recipe: Recipe,
) -> tuple[tuple[str, str | None], dict[str, dict[str, float]], dict[str, tuple[float, float]]]:
    """Judge the checkpoint folder that a recipe comes from again, on the data and by the protocol of the recipe.

    Returns:
        The protocols, as from `protocol`; split → metric → value for the splits that are not trained on; and split →
        95 % interval of NDCG@10.

    Raises:
        FileNotFoundError: The folder lacks a file of a checkpoint.
        ValueError: Weights and tokenizer are of different catalogues, or the data cannot be used.
    """
    folder = recipe.source
    check_folder(folder)
    if "data" not in recipe.options:
        raise ValueError(f"{folder} does not say which log it was trained on: name it with --data.")
    model, tokenizer = AutoModelForMaskedLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    check_sizes(model, tokenizer)
    _, _, histories = prepare(recipe, tokenizer)
    recipe.training.output_dir = tempfile.gettempdir()  # nothing is written
    recipe.training.torch_compile = False
    judge = evaluator(model, recipe, tokenizer, histories["test"])
    judged = {split: judge_on(judge, rows) for split, rows in histories.items() if split != "train"}
    metrics = {split: both[0] for split, both in judged.items()}
    return protocol(recipe, len(tokenizer.items)), metrics, {split: both[1] for split, both in judged.items()}


def judge_on(judge: Trainer, rows: Dataset) -> tuple[dict[str, float], tuple[float, float]]:
    """The ranking metrics of a split, and the 95 % bootstrap interval of NDCG@10 over its users."""
    ranks = rank_rows(judge, rows)
    metrics = judge.compute_metrics(EvalPrediction(predictions=ranks, label_ids=None))
    return metrics, bootstrap_interval(ndcg_gains(ranks if ranks.ndim == 1 else ranks[:, 0], 10))


def _setup(recipe: Recipe, tokenizer: ItemTokenizer) -> dict[str, Any]:
    ranking: dict[str, Any] = {"sampled": sampled_by(recipe)}
    if ARCHITECTURES[recipe.run.architecture].objective != "cloze":
        if unread := [name for name in dataclasses.asdict(recipe.masking) if name in recipe.options]:
            logger.warning(
                "%s masks nothing and does not read %s.", ARCHITECTURES[recipe.run.architecture].name, ", ".join(unread)
            )
        return next_item_training(tokenizer, **ranking)
    return cloze_training(tokenizer, seed=recipe.training.seed, **ranking, **dataclasses.asdict(recipe.masking))


def checkpoint_to_resume(recipe: Recipe, data: str) -> str | None:
    """The checkpoint that `resume_from_checkpoint` means (true: the newest complete one), or None for a fresh run.

    Args:
        recipe: Of the run. What its model and its rows are made by is kept in the output folder, with the next one: a
            run goes on as it began. So is what a checkpoint of the optimiser would overrule. Other options of the
            training may change, as for any `Trainer`.
        data: Checksum of its interactions.

    Raises:
        ValueError: There is nothing to resume, or data or options have changed; or an interrupted run would be lost.
    """
    args = recipe.training
    options: dict[str, Any] = {name: getattr(recipe.run, name) for name in ("architecture", "split", "max_length")}
    options |= {"muon_learning_rate": args.muon_learning_rate, **{name: getattr(args, name) for name in RESTORED}}
    for section in (recipe.splitting, recipe.model, recipe.masking):
        options |= dataclasses.asdict(section)
    wanted = str(args.resume_from_checkpoint or False)
    folder = Path(args.output_dir or "")
    newest, begun = last_complete_checkpoint(folder), folder / "begun.json"
    if wanted.lower() == "false":
        if newest is not None:
            raise ValueError(
                f"{folder} holds {newest.name} of an interrupted run. Go on with --resume_from_checkpoint true, delete "
                "it, or name another --output_dir."
            )
        if args.process_index == 0:
            if (folder / "model").exists():
                logger.warning("%s is there already, and will be replaced at the end of this run.", folder / "model")
            folder.mkdir(parents=True, exist_ok=True)
            begun.write_text(json.dumps({"data": data, "options": options}))
        return None
    checkpoint = newest if wanted.lower() == "true" else Path(wanted)
    if checkpoint is None or not (checkpoint / "trainer_state.json").exists():
        raise ValueError(
            f"Expected a complete checkpoint to resume in {checkpoint or folder}, found none. Give the --output_dir of "
            "the interrupted run; a finished one is in its model/ and keeps no others."
        )
    before: dict[str, Any] = json.loads(begun.read_text()) if begun.exists() else {"data": data, "options": options}
    if before["data"] != data:
        raise ValueError(
            f"{checkpoint}: the data has changed since this run began, its items would be renumbered. Go on with the "
            "same data and filters, or start anew in another --output_dir."
        )
    changed = [name for name, value in before["options"].items() if options.get(name) != value]
    if changed:
        told = ", ".join(f"{name} was {before['options'][name]} and is {options.get(name)}" for name in changed)
        raise ValueError(f"{checkpoint}: {told}. Go on as this run began, or start anew in another --output_dir.")
    return str(checkpoint)


def describe_data(recipe: Recipe, interactions: Dataset) -> DataFacts:
    """Name, size and checksum of the interactions, and the terms that travel with embedded data."""
    table = interactions.with_format("arrow")[:]
    lines = io.BytesIO()
    pyarrow.csv.write_csv(table.select(["user", "item", "timestamp"]), lines)
    return DataFacts(
        name=Path(recipe.run.data).name,
        interactions=table.num_rows,
        users=len(table["user"].unique()),
        items=len(table["item"].unique()),
        sha256=hashlib.sha256(lines.getbuffer()).hexdigest(),
        terms=recipe.run.terms or (EMBEDDED_TERMS if is_embedded(recipe.run.data) else None),
    )


class EpochLines(TrainerCallback):
    """One short line an evaluation instead of the Trainer's dictionaries."""

    loss: float = float("nan")

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """Write the line."""
        self.loss = logs.get("loss", self.loss)
        if state.is_world_process_zero and "eval_ndcg@10" in logs:
            self.write(
                f"epoch {state.epoch:5.1f}   loss {self.loss:6.3f}   validation HR@10 {logs['eval_hr@10']:.4f}   "
                f"NDCG@10 {logs['eval_ndcg@10']:.4f}"
            )

    def write(self, line: str) -> None:
        """Onto the standard output."""
        tqdm.write(line)


class EpochLinesWithBar(EpochLines, ProgressCallback):
    """The same, above the stock progress bar."""

    def write(self, line: str) -> None:
        """Above the bar, while there is one."""
        if self.training_bar is not None:
            self.training_bar.write(line)


def draw_curve(facts: RunFacts) -> bytes:
    """Training loss and validation NDCG@10 over epochs, beside the baselines, as a PNG."""
    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    figure.suptitle(f"{facts.name}, seed {facts.recipe['seed']}: {facts.protocol}", fontsize=9)
    for axes, name, label in ((left, "loss", "training loss (nats an item)"), (right, "eval_ndcg@10", "NDCG@10")):
        points = [(entry["epoch"], entry[name]) for entry in facts.log if name in entry]
        axes.plot(*np.array(points).reshape(-1, 2).T, label=facts.model)
        axes.set(xlabel="epoch", ylabel=label)
    for (name, row), style in zip(facts.results.get("validation", {}).items(), ("--", ":"), strict=False):
        right.axhline(row["ndcg@10"], linestyle=style, color="gray", label=name)
    right.set(ylabel="validation NDCG@10", ylim=(0, None))
    right.legend()
    png = io.BytesIO()
    figure.savefig(png, dpi=120)
    return png.getvalue()


def summary(folder: Path) -> str:
    """What a run found, for people: the test results beside the baselines, and ten recommendations."""
    facts = RunFacts.load(folder)
    scores = {name: row["ndcg@10"] for name, row in facts.results["test"].items()}
    ours = scores.pop(facts.model)
    ratios = [f"{ours / score:.2f} times that of {name}" for name, score in scores.items() if score]
    recommender = pipeline(folder)
    history = [str(item) for item in facts.recipe.get("example") or recommender.tokenizer.items[:3].to_pylist()]
    return "\n".join(
        [
            f"\nTest: {facts.protocol}; seed {facts.recipe['seed']}",
            results_table(facts.results["test"]),
            f"NDCG@10 of {facts.model}: {', '.join(ratios)}.\n",
            recommendation_table(recommender, history, top_k=10),
            f"\nTrained in {facts.seconds:.0f} s; checkpoint, card and {CURVE} in {folder}",
        ]
    )


def recommendation_table(recommender: NextItemRecommendationPipeline, history: list[str], **options: Any) -> str:
    """One history and what is recommended for it, a line an item."""
    tokenizer = recommender.tokenizer
    titles = dict(zip(tokenizer.items.to_pylist(), tokenizer.titles or [None] * len(tokenizer.items), strict=True))
    seen = [f"  {item:>10}          {titles.get(item) or ''}" for item in history]
    recommended = recommender([history], **options)[0]
    best = [f"  {row['item']:>10}  {row['score']:.4f}  {row['title'] or ''}" for row in recommended]
    return "\n".join(["History, oldest first:", *seen, "Recommended, best first (item, score, title):", *best])
