"""The cookbook's checkpoint tools on a path: download, PEFT's form, a merged model; prints JSON.

Arguments: `merge` or `leave`, the checkpoint's path, the base model's folder, token ids.
"""

import json
import sys
from pathlib import Path

import torch
from peft import PeftModel
from tinker_cookbook import weights
from transformers import AutoModelForCausalLM

what, path, base, *tokens = sys.argv[1:]
tokens = [int(token) for token in tokens]


def logprobs(model):
    with torch.no_grad():
        logits = model.float().eval()(torch.tensor([tokens[:-1]])).logits[0].log_softmax(-1)
    return logits[range(len(tokens) - 1), tokens[1:]].tolist()


def plain():
    return AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)


adapter = weights.download(tinker_path=path, output_dir="adapter")
weights.build_lora_adapter(base_model=base, adapter_path=adapter, output_path="peft")
found = {
    "files": sorted(one.name for one in Path(adapter).iterdir()),
    "base": logprobs(plain()),
    "adapter": logprobs(PeftModel.from_pretrained(plain(), adapter)),
    "peft": logprobs(PeftModel.from_pretrained(plain(), "peft")),
}
if what == "merge":
    weights.build_hf_model(
        base_model=base, adapter_path=adapter, output_path="merged", dtype="float32",
        merge_strategy="full",
    )  # fmt: skip
    merged = AutoModelForCausalLM.from_pretrained("merged", dtype=torch.float32)
    found["merged"] = logprobs(merged)
print(json.dumps(found))
