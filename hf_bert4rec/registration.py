"""Registration of the models with transformers, delayed until transformers is imported.

`AutoModel` must find the models after `import hf_bert4rec`, but importing transformers takes seconds, which
`hf-bert4rec --help` cannot spend. Each module of transformers below makes one registration possible. It is carried out
when the outermost import that loads the module has ended, because the models import from transformers themselves.
"""

import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType


def _register_configs() -> None:
    from .models.registry import register_configs

    register_configs()


def _register_models() -> None:
    from .models.registry import register_models

    register_models()


def _register_tokenizers() -> None:
    from transformers import AutoTokenizer

    from .data.tokenization import ItemTokenizer
    from .models.registry import ARCHITECTURES

    for architecture in ARCHITECTURES.values():
        AutoTokenizer.register(architecture.config_class, fast_tokenizer_class=ItemTokenizer, exist_ok=True)


def _register_pipeline() -> None:
    import_module(".inference.pipeline", __package__)  # registers its task


REGISTRATIONS: dict[str, Callable[[], None]] = {
    "transformers.models.auto.configuration_auto": _register_configs,
    "transformers.models.auto.modeling_auto": _register_models,
    "transformers.models.auto.tokenization_auto": _register_tokenizers,
    "transformers.pipelines": _register_pipeline,
}


class _RegistrationFinder(MetaPathFinder):
    """Has the other finders find modules, and registers what has become possible after the outermost import."""

    def __init__(self) -> None:
        self.waiting = dict(REGISTRATIONS)
        self.depth = 0

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname.partition(".")[0] not in ("transformers", __package__):
            return None
        found = (finder.find_spec(fullname, path, target) for finder in sys.meta_path if finder is not self)
        spec = next((spec for spec in found if spec is not None), None)
        if spec is None or spec.loader is None:
            return spec
        execute = spec.loader.exec_module

        def execute_and_register(module: ModuleType) -> None:
            self.depth += 1
            try:
                execute(module)
            finally:
                self.depth -= 1
            self.register()

        spec.loader.exec_module = execute_and_register  # type: ignore[method-assign]
        return spec

    def register(self) -> None:
        """Carry out the registrations whose module has been imported, unless an import is still going on."""
        for name in REGISTRATIONS:
            if self.depth == 0 and name in self.waiting and name in sys.modules:
                self.waiting.pop(name)()
        if not self.waiting and self in sys.meta_path:
            sys.meta_path.remove(self)


def register_with_transformers() -> None:
    """Register configurations, models, tokenizer and pipeline now, or as soon as transformers is imported."""
    finder = _RegistrationFinder()
    sys.meta_path.insert(0, finder)
    finder.register()
