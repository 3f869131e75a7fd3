"""Imports Gradio in less time: without the type stubs that it writes for editors, beside its own files, each time."""

import importlib.abc
import importlib.util
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType

MODULE = "gradio.component_meta"  # its create_or_modify_pyi parses the source of each component, a sixth of the start


class WithoutStubs(importlib.abc.MetaPathFinder):
    """Finds that module, once, and replaces the function when it has been executed; the components, which call it, come
    later. Should another version of Gradio have no such module, or no such function, nothing happens."""

    def find_spec(self, name: str, path: object = None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name != MODULE:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec and spec.loader:
            execute = spec.loader.exec_module

            def and_replace(module: ModuleType) -> None:
                execute(module)
                module.create_or_modify_pyi = lambda *_: None  # type: ignore[attr-defined]

            spec.loader.exec_module = and_replace  # type: ignore[method-assign]
        return spec


def leave_out() -> None:
    """To be called before anything imports Gradio."""
    if "gradio" not in sys.modules:
        sys.meta_path.insert(0, WithoutStubs())
