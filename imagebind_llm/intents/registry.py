"""The methods of classifier.py by name, which are the choices of --method.

A classifier of one's own: a file with a function as `fit_probe` in methods.py, and a line here.
"""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module


@dataclass(frozen=True)
class Entry:
    """function: "module:name" of an evaluation.Method, imported when it is used. uses_training: whether it has a use for the
    rows of train and select splits. each_subset: whether it is fitted anew for every subset of modalities; else its answers to
    masked clips are reported."""

    function: str
    uses_training: bool = True
    each_subset: bool = False

    @property
    def fit(self) -> Callable:
        module, name = self.function.split(":")
        return getattr(import_module(module), name)


METHODS = {
    "probe": Entry("imagebind_llm.intents.methods:fit_probe", each_subset=True),
    "zeroshot": Entry("imagebind_llm.intents.methods:fit_zeroshot", uses_training=False),
    "itsl": Entry("imagebind_llm.intents.methods:fit_itsl"),
}
