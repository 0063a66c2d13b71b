"""Create a Space in which a checkpoint can be tried in the browser.

    hf auth login
    python scripts/space/push.py your-name/bert4rec-demo                                # the released bert4rec-ml1m
    python scripts/space/push.py your-name/bert4rec-demo --model runs/mine/model        # the Space has a copy of it
    python scripts/space/push.py your-name/bert4rec-demo --model your-name/bert4rec     # the Space loads this Hub ID

The Space is created if it does not exist, and updated otherwise.
"""

import argparse
import shutil
import tempfile
import tomllib
from pathlib import Path

from huggingface_hub import HfApi, SpaceCard

from hf_bert4rec.cli.main import plain_errors
from hf_bert4rec.hub.checkpoint import check_checkpoint, is_folder
from hf_bert4rec.hub.errors import hub_errors
from hf_bert4rec.hub.push import create_repository, files_in, published_files, push_files

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
APP = ("app.py", "page.html", "style.css")
BUNDLED = "model"
MARKER = "hf_bert4rec/__init__.py"  # other apps do not contain it


def assemble(folder: Path, model: str) -> str:
    """Write the files of the Space into `folder`: app, package, requirements, card, and perhaps the checkpoint.

    The Space contains the source of the package, so it runs the code that its checkpoint was made with.

    Returns:
        What the app loads: the folder of the checkpoint in the Space, or its Hub ID.

    Raises:
        FileNotFoundError: The checkpoint is neither a complete folder nor a Hub ID.
        ValueError: The parts of the checkpoint do not belong together.
    """
    if is_folder(model):
        check_checkpoint(model)
    for name in APP:
        shutil.copy(HERE / name, folder)
    shutil.copy(ROOT / "LICENSE", folder)
    shutil.copytree(
        ROOT / "hf_bert4rec", folder / "hf_bert4rec", ignore=shutil.ignore_patterns("embedded", "__pycache__")
    )
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    (folder / "requirements.txt").write_text("\n".join(project["dependencies"]) + "\n", encoding="utf-8")
    card = SpaceCard.load(HERE / "README.md")
    if Path(model).is_dir():
        (folder / BUNDLED).mkdir()
        for name, content in published_files(Path(model)).items():
            data = content if isinstance(content, bytes) else content.read_bytes()
            (folder / BUNDLED / name).write_bytes(data)
    else:
        card.data.models = [model]  # the Hub shows a link to this model
    card.save(folder / "README.md")
    return BUNDLED if Path(model).is_dir() else model


def push(repository: str, model: str, *, private: bool | None = None) -> str:
    """Create or update a Space in one commit.

    Args:
        repository: ID of the Space (org/name).
        model: Checkpoint folder, which is copied into the Space, or Hub ID.
        private: Whether a new Space is private. None: the default of the owner.

    Returns:
        The address of the Space.

    Raises:
        OSError: The checkpoint is incomplete, or the push fails, see `push_files`.
        ValueError: The parts of the checkpoint do not belong together.
    """
    with tempfile.TemporaryDirectory() as folder:
        loaded = assemble(Path(folder), model)
        repository = create_repository(repository, repo_type="space", private=private, space_sdk="gradio")
        push_files(
            repository,
            files_in(Path(folder)),
            repo_type="space",
            marker=MARKER,
            replaced=["hf_bert4rec/*", f"{BUNDLED}/*"],
            commit_message=f"Show {Path(model).name}",
        )
        with hub_errors(repository):
            api = HfApi()
            api.add_space_variable(repository, "MODEL", loaded)  # also restarts the Space
    return f"{api.endpoint}/spaces/{repository}"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("repository", help="ID of the Space (org/name)")
    text = "checkpoint folder or Hub ID (default: the released bert4rec-ml1m)"
    parser.add_argument("--model", default=str(ROOT / "model_cards" / "bert4rec-ml1m"), help=text)
    parser.add_argument("--private", action="store_true", default=None, help="create a new Space as private")
    args = parser.parse_args()
    with plain_errors():
        print(push(args.repository, args.model, private=args.private))
