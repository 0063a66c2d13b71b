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

from hf_bert4rec.cli.main import plain_errors
from hf_bert4rec.hub.checkpoint import check_checkpoint, hub_errors, is_folder, published_files

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
        ValueError: Its parts disagree.
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
        card.data.models = [model]  # the Hub links them
    card.save(folder / "README.md")
    return BUNDLED if Path(model).is_dir() else model


def push(repository: str, model: str, *, private: bool | None = None) -> str:
    """Create or update a Space in one commit; `private` as its owner has set if not given.

    Returns:
        Its address.

    Raises:
        FileExistsError: The Space holds another app.
        OSError: The Hub refuses it or cannot be reached.
    """
    with tempfile.TemporaryDirectory() as folder, hub_errors(repository):
        loaded = assemble(Path(folder), model)
        api = HfApi()
        url = api.create_repo(repository, repo_type="space", space_sdk="gradio", private=private, exist_ok=True)
        there = api.repo_info(url.repo_id, repo_type="space")
        files = {file.rfilename for file in there.siblings or ()} - {".gitattributes", "README.md"}
        if files and not files.issuperset(APP):
            raise FileExistsError(f"{repository} is taken: it holds another app ({min(files)}). Push to another name.")
        api.upload_folder(
            repo_id=url.repo_id,
            repo_type="space",
            folder_path=folder,
            parent_commit=there.sha,
            commit_message=f"Show {Path(model).name}",
            delete_patterns=["hf_bert4rec/*", f"{BUNDLED}/*"],  # what an earlier push left and this one lacks
        )
        api.add_space_variable(url.repo_id, "MODEL", loaded)  # starts it again
    return str(url)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("repository", help="Id of the Space: org/name.")
    parser.add_argument("--model", default=str(ROOT / "model_cards" / "bert4rec-ml1m"), help="Folder or Hub id.")
    parser.add_argument("--private", action="store_true", default=None, help="Create a private Space.")
    args = parser.parse_args()
    with plain_errors():
        print(push(args.repository, args.model, private=args.private))
