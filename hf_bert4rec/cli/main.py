"""The command `hf-bert4rec`. Heavy modules are imported when a command runs, which keeps `--help` fast."""

import logging
import os
import signal
import sys
from argparse import SUPPRESS, ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from huggingface_hub.errors import StrictDataclassError

READING = (
    "user", "item", "timestamp", "rating", "min_rating", "min_user_interactions", "min_item_interactions",
    "keep_repeats", "format", "separator", "encoding",
)  # fmt: skip
"""Options of `load_interactions`."""
EXTRAS = {"implicit": "baselines", "gradio": "space"}
"""For each optional module, the extra of this package that installs it."""
FIXABLE = (ValueError, OSError, MemoryError, PackageNotFoundError)  # also errors that name what to `pip install`


def train(argv: list[str]) -> None:
    """Train a recommender on a log and save it with its model card."""
    if _print_help("train", argv):
        return
    import transformers

    from ..hub.checkpoint import last_complete_checkpoint
    from ..hub.errors import disk_errors
    from .recipe import parse_recipe
    from .report import summary
    from .resume import REJECTED
    from .run import run

    recipe = parse_recipe(argv)
    transformers.logging.disable_progress_bar()  # one bar per saved checkpoint; the bar of the training stays
    try:
        with disk_errors(recipe.training.output_dir or ""):
            folder = run(recipe)
    except KeyboardInterrupt:
        if (checkpoint := last_complete_checkpoint(recipe.training.output_dir or "")) is None:
            sys.exit("\nInterrupted. There is no checkpoint to resume from. To start again, run the same command.")
        sys.exit(f"\nInterrupted. To resume from {checkpoint}, add `--resume_from_checkpoint true` to the command.")
    if folder is not None:
        print(summary(folder))
        if folder.name == REJECTED:
            found = f"The new model is worse than {recipe.run.continue_from}, which was not replaced."
            advice = "If few users were held out, first increase `--held_out`. Check that the new log uses the same "
            advice += "item IDs as the old log, then try a lower `--learning_rate`."
            sys.exit(f"{found} The new model is in {folder}. {advice} To accept a larger fall, increase `--tolerance`.")


def evaluate(argv: list[str]) -> None:
    """Evaluate a checkpoint by ranking the whole catalog."""
    if _print_help("evaluate", argv):
        return
    from ..hub.checkpoint import fetch_checkpoint
    from ..hub.model_card import results_table, sampled_table
    from .recipe import parse_recipe
    from .trainers import evaluate

    words = [*argv]
    if words and not words[0].startswith("-"):
        words[0] = str(fetch_checkpoint(words[0]))
    (protocol, sampled_protocol), results, intervals = evaluate(parse_recipe(words))
    print(f"Protocol: {protocol}\n{results_table(results)}")
    for split, (low, high) in intervals.items():
        print(f"95 % interval of NDCG@10 over users (bootstrap), {split}: {low:.4f} to {high:.4f}")
    if sampled := sampled_table(results):
        print(f"\nProtocol: {sampled_protocol}\n{sampled}")


def compare(argv: list[str]) -> None:
    """Train and evaluate several models on one dataset."""
    parser = _parser("compare")
    parser.description = _help_text("compare")
    parser.add_argument("config", metavar="CONFIG", help="YAML file of the comparison")
    text = "split to evaluate on (default: test)"
    parser.add_argument("--split", default="test", choices=("validation", "test"), help=text)
    parser.add_argument("--output_dir", metavar="FOLDER", help="folder (default: runs/compare-NAME-SPLIT of NAME.yaml)")
    args = parser.parse_args(argv)
    from .compare import compare

    folder = args.output_dir or f"runs/compare-{Path(args.config).stem}-{args.split}"
    try:
        print(compare(args.config, args.split, folder))
    except KeyboardInterrupt:
        sys.exit(f"Interrupted. Run the same command to continue with the results in {folder}.")
    print(f"The report and the results are saved in {folder}.")


def recommend(argv: list[str]) -> None:
    """Recommend items for a history of item IDs, or for all users of a file."""
    parser = _parser(
        "recommend",
        "runs/mine/model --history 260 1196 --top_k 5",
        "runs/mine/model --input histories.parquet --output recommendations --processes 2",
    )
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="checkpoint folder or Hub ID")
    text = "item IDs, oldest first (default: no items, as for a new user)"
    parser.add_argument("--history", nargs="*", action="extend", metavar="ID", help=text)
    text = "recommend for all users of a Parquet file with columns user and history (lists of item IDs), or of a log"
    parser.add_argument("--input", metavar="FILE", help=text)
    text = "with --input: column of the user in a log; other options for reading a log are as for hf-bert4rec train"
    for name in READING:
        parser.add_argument(f"--{name}", metavar="COLUMN", help=text if name == "user" else SUPPRESS)
    text = "with --input: new folder for the result; after an interruption, the same command continues in it"
    parser.add_argument("--output", metavar="FOLDER", help=text)
    parser.add_argument("--processes", type=int, default=1, metavar="N", help="with --input: processes (default: 1)")
    parser.add_argument("--top_k", type=int, default=10, metavar="N", help="number of items to recommend (default: 10)")
    parser.add_argument("--allow", nargs="+", action="extend", metavar="ID", help="recommend only these items")
    parser.add_argument("--deny", nargs="+", action="extend", metavar="ID", help="never recommend these items")
    text = "whether items of the history are excluded (default: the setting of the model)"
    parser.add_argument("--exclude_history", choices=("true", "false"), help=text)
    args, others = parser.parse_known_args(argv)
    if others:
        advice = "Pass the items of a history after `--history`."
        if others[0].startswith("-"):
            advice = "Use the options above, or with `--input` the options of `hf-bert4rec train` for reading a log."
        parser.error(f"unrecognized arguments: {' '.join(others)}. {advice}")
    options = {"top_k": args.top_k, "allow": args.allow, "deny": args.deny}
    if args.exclude_history:
        options["exclude_history"] = args.exclude_history == "true"
    if (args.input is None) != (args.output is None) or (args.input and args.history is not None):
        parser.error("Use `--input` together with `--output`, and without `--history`.")
    reading = {name: value for name in READING if (value := getattr(args, name)) is not None}
    if not args.input and (reading or args.processes != 1):
        option = f"`--{next(iter(reading), 'processes')}`"
        parser.error(f"{option} needs `--input` and `--output`, without `--history`. Add them, or omit {option}.")
    if args.input:
        if Path(args.output).suffix in (".csv", ".parquet"):
            parser.error(f"`--output` must be a folder for Parquet files, found {args.output}. Omit the suffix.")
        from ..inference.batch import recommend_to_parquet
        from .recipe import parse_recipe

        columns = parse_recipe([f"--{name}={value}" for name, value in reading.items()]).options("reading")
        options |= {"processes": args.processes, "columns": columns}
        print(f"Saved in {recommend_to_parquet(args.checkpoint, args.input, args.output, **options)}.")
        return
    from ..inference.pipeline import pipeline
    from .report import recommendation_table

    print(recommendation_table(pipeline(args.checkpoint), args.history or [], **options))


def push(argv: list[str]) -> None:
    """Push a checkpoint to the Hugging Face Hub."""
    more = " Log in first with hf auth login, or set HF_TOKEN."
    parser = _parser("push", "runs/mine/model your-name/bert4rec-mine", more=more)
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="checkpoint folder, as hf-bert4rec train saves it")
    parser.add_argument("repository", metavar="REPO", help="Hub ID (org/name); created if it does not exist")
    parser.add_argument("--private", action="store_true", help="create a private repository")
    args = parser.parse_args(argv)
    from ..hub.push import push_checkpoint

    print(push_checkpoint(args.checkpoint, args.repository, private=args.private or None))


def push_data(argv: list[str]) -> None:
    """Push the histories of a recipe and their tokenizer to the Hugging Face Hub."""
    more = "\nFurther options are those of hf-bert4rec train. Log in first with hf auth login."
    parser = _parser("push-data", "runs/mine/model your-name/mine --i_may_share_this_data", more=more)
    parser.add_argument("config", metavar="CONFIG", help="YAML file or checkpoint folder, as for hf-bert4rec train")
    parser.add_argument("repository", metavar="REPO", help="Hub ID (org/name); created if it does not exist")
    parser.add_argument("--private", action="store_true", help="create a private repository")
    text = "confirm that you are allowed to publish the data; needed unless the data is part of this package"
    parser.add_argument("--i_may_share_this_data", action="store_true", help=text)
    args, options = parser.parse_known_args(argv)
    from .push_data import push_data as push_histories
    from .recipe import parse_recipe

    recipe = parse_recipe([args.config, *options])
    print(push_histories(recipe, args.repository, may_share=args.i_may_share_this_data, private=args.private or None))


def items(argv: list[str]) -> None:
    """Add items to a checkpoint, or remove items from its recommendations."""
    parser = _parser("items", "add runs/mine/model new.csv", "remove runs/mine/model 260 1196")
    commands = parser.add_subparsers(dest="command", required=True, metavar="add|remove")
    text = "Add the items of a table. Known items get its titles, and removed items can be recommended again."
    add = commands.add_parser("add", help=text, description=text)
    text = "Never recommend items again. Histories may still contain them."
    remove = commands.add_parser("remove", help=text, description=text)
    for command in (add, remove):
        command.add_argument("checkpoint", metavar="CHECKPOINT", help="checkpoint folder or Hub ID")
        command.add_argument("--output", metavar="FOLDER", help="folder of the result (default: replace CHECKPOINT)")
    text = "file with a column item, and optionally title, like (similar items: IDs, separated by |) and features"
    add.add_argument("table", metavar="TABLE", help=text)
    add.add_argument("--encoder", metavar="NAME", help="model of sentence-transformers, if the features have text")
    add.add_argument("--item", help="column of the item ID (default: a column with a usual name)")
    add.add_argument("--title", help="column of the title (default: a column with a usual name)")
    remove.add_argument("ids", nargs="+", metavar="ID", help="IDs of the items to remove")
    args = parser.parse_args(argv)
    from ..training.catalog import add_items, remove_items

    if args.command == "add":
        add_items(args.checkpoint, args.table, args.output, item=args.item, title=args.title, encoder=args.encoder)
    else:
        remove_items(args.checkpoint, args.ids, args.output)
    print(f"Saved in {args.output or args.checkpoint}.")


def serve(argv: list[str]) -> None:
    """Answer requests over HTTP: raw item IDs in, recommendations out."""
    if hasattr(signal, "SIGHUP"):
        signal.signal(signal.SIGHUP, signal.SIG_IGN)  # the checkpoint is loaded later, so nothing is missed
    more = " On SIGHUP the server loads the checkpoint again."
    parser = _parser("serve", "runs/mine/model --port 8000", more=more)
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="checkpoint folder, Hub ID, or exported folder")
    parser.add_argument("--host", default="127.0.0.1", help="listen address (default: 127.0.0.1, this machine only)")
    parser.add_argument("--port", type=int, default=8000, help="port to listen on (default: 8000)")
    parser.add_argument("--revision", help="branch, tag or commit, if CHECKPOINT is a Hub ID (default: main)")
    args = parser.parse_args(argv)
    if not 0 <= args.port < 2**16:
        parser.error(f"argument --port: must be from 0 to 65535, found {args.port}")
    from ..inference.serving import serve as serve_checkpoint
    from .own_code import imported

    serve_checkpoint(args.checkpoint, args.host, args.port, args.revision, imported)


def export(argv: list[str]) -> None:
    """Write a checkpoint as an ONNX graph, for other runtimes."""
    parser = _parser("export", "runs/mine/model --output runs/mine/onnx")
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="checkpoint folder or Hub ID")
    parser.add_argument("--output", required=True, metavar="FOLDER", help="folder of the result")
    parser.add_argument("--to", default="onnx", choices=("onnx",), help="format of the result (default: onnx)")
    parser.add_argument("--revision", help="branch, tag or commit, if CHECKPOINT is a Hub ID (default: main)")
    args = parser.parse_args(argv)
    from ..inference.export import export_checkpoint

    print(f"Saved in {export_checkpoint(args.checkpoint, args.output, args.revision)}.")


FUNCTIONS = (train, evaluate, compare, recommend, serve, export, items, push, push_data)
COMMANDS: dict[str, Callable[[list[str]], None]] = {it.__name__.replace("_", "-"): it for it in FUNCTIONS}
"""Function of each command, called with the arguments after the name. Its docstring is a line of the help."""


def main(argv: Sequence[str] | None = None) -> None:
    """Run a command line, by default that of the process. Exit with a message for errors that the user can fix."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch: spinning threads slow down small models
    name, *rest = list(sys.argv[1:] if argv is None else argv) or ["--help"]
    if name in ("-h", "--help"):
        lines = "\n".join(f"  {command:<10} {run.__doc__}" for command, run in COMMANDS.items())
        print(f"usage: hf-bert4rec COMMAND …\n\n{lines}\n")
        print("hf-bert4rec COMMAND --help shows the options of a command. hf-bert4rec --version shows the version.")
        print("hf-bert4rec COMMAND --import MODULE imports your own models, losses, splits, formats or baselines.")
        return
    if name == "--version":
        print(version("hf-bert4rec"))
        return
    if name not in COMMANDS:
        near = get_close_matches(name, COMMANDS, n=1)
        hint = f"Did you mean `{near[0]}`?" if near else f"Choose from {', '.join(COMMANDS)}."
        sys.exit(f"hf-bert4rec: error: Unknown command `{name}`. {hint}")
    logger = logging.getLogger("hf_bert4rec")
    if not logger.handlers:
        logger.addHandler(logging.StreamHandler())
    logger.setLevel(logging.INFO if os.environ.get("RANK", "0") == "0" else logging.ERROR)  # once, by the first process
    parser = ArgumentParser(f"hf-bert4rec {name}", add_help=False, allow_abbrev=False)
    parser.add_argument("--import", dest="modules", metavar="MODULE", action="append", default=[])
    args, rest = parser.parse_known_args(rest)
    with plain_errors(f"hf-bert4rec {name}"):
        for module in args.modules:
            from .own_code import import_own_code

            try:
                import_own_code(module)
            except (ImportError, ValueError) as error:
                raise ValueError(f"`--import {module}` failed: {error}. Check the name and the code.") from error
        COMMANDS[name](rest)


@contextmanager
def plain_errors(program: str | None = None) -> Iterator[None]:
    """Exit with a message on standard error, without a traceback, for errors that the user can fix."""
    program = program or Path(sys.argv[0]).name
    try:
        yield
    except KeyboardInterrupt:
        sys.exit(f"{program}: interrupted")
    except Exception as error:
        if isinstance(error, ModuleNotFoundError) and error.name in EXTRAS:
            reason = f"{error.name} is not installed. Run `pip install 'hf-bert4rec[{EXTRAS[error.name]}]'`."
        elif isinstance(error, StrictDataclassError):  # its own text names a method, its cause the option
            reason = str(error.__cause__ or error)
        elif isinstance(error, OSError) and error.filename is not None:
            reason = f"{error.filename}: {error.strerror}."
        elif not isinstance(error, FIXABLE) and type(error) is not ImportError and "pip install" not in str(error):
            raise
        else:
            reason = str(error)
        sys.exit(f"{program}: error: {reason}")


def _parser(name: str, *examples: str, more: str = "") -> ArgumentParser:
    """Return a parser. Its description is the docstring of the command, then `more`, then one example per line."""
    command = f"hf-bert4rec {name}"
    lines = [f"{COMMANDS[name].__doc__}{more}\n", *(f"  {command} {example}" for example in examples)]
    form = RawDescriptionHelpFormatter
    return ArgumentParser(command, description="\n".join(lines), formatter_class=form, allow_abbrev=False)


def _help_text(name: str) -> str:
    return Path(__file__).with_name("help").joinpath(f"{name}.txt").read_text(encoding="utf-8").strip()


def _print_help(name: str, argv: list[str]) -> bool:
    """Print the help of a command if the arguments ask for it, and return whether they do."""
    text = _help_text(name)
    if "--help-all" in argv:
        from .options import format_help

        text = format_help(text.splitlines()[0].removeprefix("usage: "))
    elif not {"-h", "--help"} & {*argv}:
        return False
    print(text)
    return True


if __name__ == "__main__":
    main()
