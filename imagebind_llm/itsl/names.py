"""Parameter names in the model and in files. Files keep the published names and those that older versions wrote.

    model                                               files
    ...attention.wq.lora_down.weight, .lora_up.weight   ...attention.lora_wq_l1.weight, lora_wq_l2.weight (ImageBind-LLM)
    fusion.modality_query.weight                        modality_query.weight
All others are the same. Names are translated only where checkpoints and adapters are read and written.
"""

import re

LORA_IN_FILES = re.compile(r"lora_(w\w)_l([12])(?=\.)")
LORA_IN_MODEL = re.compile(r"(w\w)\.lora_(down|up)(?=\.)")


def stored_name(name: str) -> str:
    """The name in a file of a parameter, or of an optimizer tensor, whose name begins with a parameter's."""
    name = LORA_IN_MODEL.sub(lambda match: f"lora_{match[1]}_l{1 if match[2] == 'down' else 2}", name)
    return name.replace("fusion.modality_", "modality_")


def parameter_name(name: str) -> str:
    """The inverse of `stored_name`; a name of the model is returned unchanged."""
    name = LORA_IN_FILES.sub(lambda match: f"{match[1]}.lora_{'down' if match[2] == '1' else 'up'}", name)
    return f"fusion.{name}" if name.startswith("modality_") else name
