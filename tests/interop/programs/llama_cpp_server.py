"""Serves the shipped model with the real llama.cpp, over its own HTTP; run in its own environment.

`llama_cpp_server.py MODEL_FOLDER GGUF` writes the model as GGUF, serves it on a free loopback port
under llama.cpp's OpenAI-compatible API, and prints the base URL. Ends with its standard input.
"""

import json
import sys
from pathlib import Path

import gguf
import numpy as np
import xllamacpp

NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def tensors(path):
    """Yield name and float32 values of each tensor of a safetensors file of bfloat16."""
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    for name, about in header.items():
        if name == "__metadata__":
            continue
        assert about["dtype"] == "BF16"
        begin, end = (8 + length + one for one in about["data_offsets"])
        bits = np.frombuffer(content[begin:end], np.uint16).astype(np.uint32) << 16
        yield name, bits.view(np.float32).reshape(about["shape"])


def name_of(name):
    """Return what GGUF calls a tensor of Qwen3's."""
    whole = {
        "model.embed_tokens.weight": "token_embd.weight",
        "model.norm.weight": "output_norm.weight",
    }
    if name in whole:
        return whole[name]
    _, _, layer, rest = name.split(".", 3)
    return f"blk.{layer}.{NAMES[rest.removesuffix('.weight')]}.weight"


def write_gguf(folder, path):
    """Write a Qwen3 model with a byte-level BPE tokenizer as GGUF."""
    config = json.loads((folder / "config.json").read_text())
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    writer = gguf.GGUFWriter(path, "qwen3")
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(config["head_dim"])
    writer.add_value_length(config["head_dim"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
    vocabulary = tokenizer["model"]["vocab"]
    special = {one["id"] for one in tokenizer["added_tokens"]}
    tokens = {number: token for token, number in vocabulary.items()}
    tokens |= {one["id"]: one["content"] for one in tokenizer["added_tokens"]}
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list([tokens.get(n, f"<unused{n}>") for n in range(config["vocab_size"])])
    kinds = gguf.TokenType
    writer.add_token_types(
        [kinds.CONTROL if n in special else kinds.NORMAL for n in range(config["vocab_size"])]
    )
    merges = tokenizer["model"]["merges"]
    writer.add_token_merges([one if isinstance(one, str) else " ".join(one) for one in merges])
    writer.add_eos_token_id(config["eos_token_id"])
    writer.add_add_bos_token(value=False)
    writer.add_chat_template((folder / "chat_template.jinja").read_text())
    for name, values in tensors(folder / "model.safetensors"):
        writer.add_tensor(name_of(name), values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def main():
    """Write, serve, and wait."""
    folder, path = Path(sys.argv[1]), Path(sys.argv[2])
    write_gguf(folder, path)
    params = xllamacpp.CommonParams()
    params.model.path = str(path)
    params.model_alias = {"llama-sprout"}
    params.hostnames = ["127.0.0.1"]
    params.port = 0
    params.n_ctx = 4096
    params.n_parallel = 2
    params.cpuparams.n_threads = 1
    params.n_gpu_layers = 0
    params.warmup = False
    params.use_jinja = True
    server = xllamacpp.Server(params)
    print(server.listening_address, flush=True)
    sys.stdin.read()


main()
