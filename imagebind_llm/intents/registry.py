"""The methods of classifier.py by name, which are the choices of --method.

To add a classifier, write a file with a function like `fit_probe` in methods.py, and add a line here.
"""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module


@dataclass(frozen=True)
class Entry:
    """A method of classification."""

    function: str  # "module:name" of an evaluation.Method, imported when it is used
    uses_training: bool = True  # whether it needs the rows of the train and select splits
    each_subset: bool = False  # whether it is fitted for every subset of modalities; otherwise modalities are masked in test

    @property
    def fit(self) -> Callable:
        module, name = self.function.split(":")
        return getattr(import_module(module), name)


METHODS = {
    "probe": Entry("imagebind_llm.intents.methods:fit_probe", each_subset=True),
    "zeroshot": Entry("imagebind_llm.intents.methods:fit_zeroshot", uses_training=False),
    "itsl": Entry("imagebind_llm.intents.methods:fit_itsl"),
}
