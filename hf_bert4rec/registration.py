"""Registration of the models with transformers, delayed until transformers is imported.

`AutoModel` must find the models after `import hf_bert4rec`, but importing transformers takes seconds, which
`hf-bert4rec --help` cannot spend. Each module of transformers below makes one registration possible. The registration
runs when the outermost import that loads the module has ended, because the models import from transformers themselves.
"""

import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

REGISTRATIONS = {
    "transformers.models.auto.configuration_auto": (".models.registry", "register_configs"),
    "transformers.models.auto.modeling_auto": (".models.registry", "register_models"),
    "transformers.models.auto.tokenization_auto": (".registration", "register_tokenizers"),
    "transformers.pipelines": (".inference.pipeline", "register_task"),
}
"""For each module of transformers, the module and the function of this package that registers."""


def register_tokenizers() -> None:
    """Register the item tokenizer for the configurations of all architectures."""
    from transformers import AutoTokenizer

    from .data.tokenization import ItemTokenizer
    from .models.registry import ARCHITECTURES

    for architecture in ARCHITECTURES.values():
        AutoTokenizer.register(architecture.config_class, fast_tokenizer_class=ItemTokenizer, exist_ok=True)


class _RegistrationFinder(MetaPathFinder):
    """Import hook that runs the `REGISTRATIONS` after the outermost import of transformers or this package.

    The modules are found by the other finders of `sys.meta_path`.
    """

    def __init__(self) -> None:
        self.waiting = dict(REGISTRATIONS)
        self.depth = 0

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name.partition(".")[0] not in ("transformers", __package__):
            return None
        found = (finder.find_spec(name, path, target) for finder in sys.meta_path if finder is not self)
        spec = next(filter(None, found), None)
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
        """Run the registrations whose module has been imported, unless an import is in progress."""
        for name in REGISTRATIONS:
            if self.depth == 0 and name in self.waiting and name in sys.modules:
                module, function = self.waiting.pop(name)
                getattr(import_module(module, __package__), function)()
        if not self.waiting and self in sys.meta_path:
            sys.meta_path.remove(self)


def register_with_transformers() -> None:
    """Register configurations, models, tokenizer and pipeline now, or as soon as transformers is imported."""
    finder = _RegistrationFinder()
    sys.meta_path.insert(0, finder)
    finder.register()
