"""The prompt of Stanford Alpaca, which LLaMA-Adapter and ImageBind-LLM were trained with."""

ALONE = "Write a response that appropriately completes the request."
PAIRED = "Below is an instruction that describes a task, paired with an input that provides further context."
SINGLE = "Below is an instruction that describes a task."


def alpaca_prompt(instruction: str, given: str = "") -> str:
    """The instruction, and what is `given` to it, up to where the answer begins (no space after the colon)."""
    if not given:
        return f"{SINGLE} {ALONE}\n\n### Instruction:\n{instruction}\n\n### Response:"
    return f"{PAIRED} {ALONE}\n\n### Instruction:\n{instruction}\n\n### Input:\n{given}\n\n### Response:"
