"""Make a Space of the app: anybody can try a checkpoint in the browser.

    hf auth login
    python scripts/space/push.py your-name/bert4rec-demo                                # the released bert4rec-ml1m
    python scripts/space/push.py your-name/bert4rec-demo --model runs/mine/model        # any folder: travels with it
    python scripts/space/push.py your-name/bert4rec-demo --model your-name/bert4rec     # any Hub id: loaded from there

Pushing again updates it.
"""

import argparse
import shutil
import tempfile
import tomllib
from pathlib import Path

from huggingface_hub import HfApi, SpaceCard

from hf_bert4rec.checkpoint import SHARED, check_folder, is_folder
from hf_bert4rec.recipe import plain_errors

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
APP = ("app.py", "page.html", "style.css")
BUNDLED = "model"


def assemble(folder: Path, model: str) -> str:
    """Write what the Space holds into `folder`: app, package, requirements, card, and the checkpoint if it is a folder.

    The package goes along as source, so that the Space runs the code that its checkpoint was made with.

    Returns:
        What the app loads: the checkpoint's place in the Space, or its Hub id.

    Raises:
        FileNotFoundError: The checkpoint is neither a whole folder nor a Hub id.
    """
    if is_folder(model):
        check_folder(model)
    for name in APP:
        shutil.copy(HERE / name, folder)
    shutil.copy(ROOT / "LICENSE", folder)
    shutil.copytree(ROOT / "hf_bert4rec", folder / "hf_bert4rec", ignore=shutil.ignore_patterns("data", "__pycache__"))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    (folder / "requirements.txt").write_text("\n".join(project["dependencies"]) + "\n", encoding="utf-8")
    card = SpaceCard.load(HERE / "README.md")
    if Path(model).is_dir():
        (folder / BUNDLED).mkdir()
        for file in {file for pattern in SHARED for file in Path(model).glob(pattern)}:
            shutil.copy(file, folder / BUNDLED)
    else:
        card.data.models = [model]  # the Hub links them
    card.save(folder / "README.md")
    return BUNDLED if Path(model).is_dir() else model


def push(repository: str, model: str, *, private: bool = False) -> str:
    """Create or update a Space in one commit.

    Returns:
        Its address.
    """
    with tempfile.TemporaryDirectory() as folder:
        loaded = assemble(Path(folder), model)
        api = HfApi()
        url = api.create_repo(repository, repo_type="space", space_sdk="gradio", private=private, exist_ok=True)
        api.add_space_variable(repository, "MODEL", loaded)
        api.upload_folder(
            repo_id=repository,
            repo_type="space",
            folder_path=folder,
            commit_message=f"Show {Path(model).name}",
            delete_patterns=["hf_bert4rec/*", f"{BUNDLED}/*"],  # what an earlier push left and this one lacks
        )
    return str(url)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("repository", help="Id of the Space: org/name.")
    parser.add_argument("--model", default=str(ROOT / "model_cards" / "bert4rec-ml1m"), help="Folder or Hub id.")
    parser.add_argument("--private", action="store_true", help="Create a private Space.")
    args = parser.parse_args()
    with plain_errors():
        print(push(args.repository, args.model, private=args.private))
