"""A language model of half a megabyte that the tests make themselves: Llama's shape, random weights from a seed, a tokenizer trained on the text below.

What it says means nothing, but it is the same in every run. One channel of every embedding is a constant that no layer writes to, so an output row's weight there is that
token's bias: it allows printable ASCII alone (each token is valid text by itself) and keeps the model from ending by itself.
"""

import json
import re
import sys

import gguf
import numpy as np

TEXT = """a card that was tested is a card that can be sold. every watt is counted, every hour goes to its best use, and when nobody asks the machine sleeps.
the gateway counts the tokens that leave, the ledger keeps the sums, and the placement says why it said no. You are a helpful assistant. Hello! how many gpus
are there in the rack and why is it warm? 0 1 2 3 4 5 6 7 8 9. Yes, no, maybe; the quick brown fox jumps over the lazy dog while the fleet runs the model."""
PIECES = re.compile(r" ?[A-Za-z]+| ?[0-9]+| ?[^\sA-Za-z0-9]+|\s+")
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
WIDTH, HEADS, KV_HEADS, HIDDEN, LAYERS, CONTEXT, MERGES = 64, 2, 1, 128, 2, 4096, 200


def shown_bytes():
    """GPT-2's reversible map from bytes to characters."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    spare = iter(range(256, 512))
    return {byte: chr(byte if byte in plain else next(spare)) for byte in range(256)}


def trained():
    """Byte-level pairs, the most frequent first."""
    shown, words, merges = shown_bytes(), {}, []
    for piece in PIECES.findall(" ".join(TEXT.split())):
        word = tuple(shown[byte] for byte in piece.encode())
        words[word] = words.get(word, 0) + 1
    while len(merges) < MERGES and any(len(word) > 1 for word in words):
        pairs = {}
        for word, count in words.items():
            for pair in zip(word, word[1:]):
                pairs[pair] = pairs.get(pair, 0) + count
        best = max(sorted(pairs), key=pairs.get)
        merges.append(best)
        words = {_joined(word, best): count for word, count in words.items()}
    return [*shown.values(), *(a + b for a, b in merges)], merges, {char: byte for byte, char in shown.items()}


def _joined(word, pair):
    out, at = [], 0
    while at < len(word):
        whole = word[at : at + 2] == pair
        out.append("".join(pair) if whole else word[at])
        at += 1 + whole
    return tuple(out)


def weights(tokens, back, seed=7):
    rng = np.random.default_rng(seed)
    head = WIDTH // HEADS

    def random(rows, columns):
        return (rng.standard_normal((rows, columns)) / np.sqrt(columns)).astype(np.float32)

    made = {"token_embd": rng.standard_normal((len(tokens) + len(SPECIAL), WIDTH)).astype(np.float32), "output_norm": np.ones(WIDTH, np.float32)}
    made["token_embd"][:, 0] = 4.0
    made["output"] = 3 * random(len(tokens) + len(SPECIAL), WIDTH)
    made["output"][:, 0] = -30.0
    for n, token in enumerate(tokens):
        if all(32 <= back[char] < 127 for char in token):
            made["output"][n, 0] = 1.0 if len(token) > 1 else -1.0
    for layer in range(LAYERS):
        name = f"blk.{layer}."
        made |= {name + "attn_norm": np.ones(WIDTH, np.float32), name + "ffn_norm": np.ones(WIDTH, np.float32)}
        made |= {
            name + "attn_q": random(WIDTH, WIDTH),
            name + "attn_k": random(KV_HEADS * head, WIDTH),
            name + "attn_v": random(KV_HEADS * head, WIDTH),
        }
        made |= {name + "attn_output": random(WIDTH, WIDTH), name + "ffn_gate": random(HIDDEN, WIDTH), name + "ffn_up": random(HIDDEN, WIDTH), name + "ffn_down": random(WIDTH, HIDDEN)}  # fmt: skip
        made[name + "attn_output"][0] = made[name + "ffn_down"][0] = 0
    return made


def make(path):
    tokens, merges, back = trained()
    out = gguf.GGUFWriter(str(path), "llama")
    out.add_name("tiny")
    out.add_context_length(CONTEXT)
    out.add_embedding_length(WIDTH)
    out.add_block_count(LAYERS)
    out.add_feed_forward_length(HIDDEN)
    out.add_head_count(HEADS)
    out.add_head_count_kv(KV_HEADS)
    out.add_layer_norm_rms_eps(1e-5)
    out.add_rope_dimension_count(WIDTH // HEADS)
    out.add_vocab_size(len(tokens) + len(SPECIAL))
    out.add_file_type(gguf.LlamaFileType.ALL_F32)
    out.add_tokenizer_model("gpt2")
    out.add_tokenizer_pre("gpt-2")
    out.add_token_list([*tokens, *SPECIAL])
    out.add_token_types([int(gguf.TokenType.NORMAL)] * len(tokens) + [int(gguf.TokenType.CONTROL)] * len(SPECIAL))
    out.add_token_merges([f"{a} {b}" for a, b in merges])
    out.add_bos_token_id(len(tokens))
    out.add_eos_token_id(len(tokens) + 2)
    out.add_add_bos_token(False)
    out.add_chat_template(TEMPLATE)
    for name, value in weights(tokens, back).items():
        out.add_tensor(name + ".weight", value)
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()


HF = {"attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm", "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
      "attn_output": "self_attn.o_proj", "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj", "token_embd": "model.embed_tokens",
      "output_norm": "model.norm", "output": "lm_head"}  # fmt: skip


def make_hf(folder):
    """The same weights as a Hugging Face folder, which vLLM and transformers read."""
    tokens, merges, back = trained()
    known, first = [*tokens, *SPECIAL], len(tokens)
    folder.mkdir(parents=True)
    index, data = {}, b""
    for name, value in weights(tokens, back).items():
        layer, part = (name.split(".")[1], name.split(".")[2]) if name.startswith("blk.") else ("", name)
        raw = value.tobytes()
        index[(f"model.layers.{layer}." if layer else "") + HF[part] + ".weight"] = {
            "dtype": "F32",
            "shape": list(value.shape),
            "data_offsets": [len(data), len(data) + len(raw)],
        }
        data += raw
    head = json.dumps({"__metadata__": {"format": "pt"}, **index}).encode()
    (folder / "model.safetensors").write_bytes(len(head).to_bytes(8, "little") + head + data)
    bytewise = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    special = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    model = {"type": "BPE", "vocab": {token: n for n, token in enumerate(tokens)}, "merges": [list(pair) for pair in merges]}
    said = {
        "config.json": {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": WIDTH, "intermediate_size": HIDDEN, "num_hidden_layers": LAYERS,
                        "num_attention_heads": HEADS, "num_key_value_heads": KV_HEADS, "head_dim": WIDTH // HEADS, "vocab_size": len(known), "max_position_embeddings": CONTEXT,
                        "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "hidden_act": "silu", "bos_token_id": first, "eos_token_id": first + 2, "tie_word_embeddings": False, "dtype": "float32"},
        "generation_config.json": {"bos_token_id": first, "eos_token_id": first + 2},
        "tokenizer.json": {"version": "1.0", "added_tokens": [{"id": first + n, "content": each, **special} for n, each in enumerate(SPECIAL)], "pre_tokenizer": bytewise,
                           "decoder": bytewise, "model": model},
        "tokenizer_config.json": {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": SPECIAL[0], "eos_token": SPECIAL[2], "model_max_length": CONTEXT, "chat_template": TEMPLATE},
    }  # fmt: skip
    for name, value in said.items():
        (folder / name).write_text(json.dumps(value))


def serve(model, host, port, key, slots=4):
    """llama.cpp's own server, from the wheel that has it inside, until a signal."""
    import signal
    import threading

    import xllamacpp

    said = xllamacpp.CommonParams()
    said.model.path, said.hostnames, said.port = str(model), [host], port
    said.n_parallel, said.n_ctx = slots, 8192
    said.cpuparams.n_threads = said.cpuparams_batch.n_threads = 1
    said.model_alias, said.api_keys = {"tiny"}, [key] if key else []
    said.embedding, said.pooling_type = True, xllamacpp.llama_pooling_type.LLAMA_POOLING_TYPE_MEAN
    said.endpoint_metrics = said.endpoint_slots = True
    said.warmup, said.ui, said.fit_params, said.verbosity, said.cache_ram_mib = False, False, False, 0, 0
    server, over = xllamacpp.Server(said), threading.Event()
    print(f"serving at {server.listening_address}", flush=True)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: over.set())
    over.wait()
    del server


if __name__ == "__main__":
    if sys.argv[1] == "make":
        make(sys.argv[2])
    else:
        import os

        serve(
            sys.argv[2],
            os.environ.get("HEADFRAME_HOST", "127.0.0.1"),
            int(os.environ.get("HEADFRAME_PORT", "8081")),
            os.environ.get("HEADFRAME_API_KEY", ""),
        )
