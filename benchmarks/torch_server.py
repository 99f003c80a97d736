"""A language model on a card behind OpenAI's chat interface, for bench_card.py: Llama's shape in plain PyTorch, about 1.2 billion random weights in 16 bits, bytes as tokens. It says
nothing that means anything, at the pace and with the watts of one that does.
"""

import json
import os
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import torch
import torch.nn.functional as F

WIDTH, LAYERS, HEADS, HIDDEN, CONTEXT = 2048, 20, 16, 6144, 2048
DEVICE = os.environ.get("TORCH_SERVER_DEVICE", "cuda")
if DEVICE == "cpu":  # only to try the script itself
    WIDTH, LAYERS, HEADS, HIDDEN = 64, 2, 2, 128


class Model:
    """One stream at a time takes a step; each has its own cache of keys and values."""

    def __init__(self):
        def normal(*shape):
            return torch.randn(*shape, device=DEVICE, dtype=torch.bfloat16) * shape[-1] ** -0.5

        self.lock = threading.Lock()
        self.embedding = normal(256, WIDTH)
        self.layers = [(normal(3 * WIDTH, WIDTH), normal(WIDTH, WIDTH), normal(2 * HIDDEN, WIDTH), normal(WIDTH, HIDDEN)) for _ in range(LAYERS)]
        at = torch.outer(torch.arange(CONTEXT, device=DEVICE), 10_000 ** -(torch.arange(0, 64, device=DEVICE) / 64))[:, : WIDTH // HEADS // 2]
        self.cos, self.sin = at.cos().bfloat16(), at.sin().bfloat16()

    def turned(self, x, start):
        """Rotary positions."""
        cos, sin = self.cos[start : start + x.shape[1]], self.sin[start : start + x.shape[1]]
        even, odd = x.chunk(2, dim=-1)
        return torch.cat((even * cos - odd * sin, even * sin + odd * cos), dim=-1)

    @torch.inference_mode()
    def step(self, tokens, cache):
        """The next byte, printable, after these."""
        with self.lock:
            start, count = cache["at"], len(tokens)
            x = self.embedding[torch.tensor(tokens, device=DEVICE)]
            for (into, out, up, down), (keys, values) in zip(self.layers, cache["kv"], strict=True):
                q, k, v = (part.view(count, HEADS, -1).transpose(0, 1) for part in F.linear(F.rms_norm(x, (WIDTH,)), into).chunk(3, dim=-1))
                keys[:, start : start + count], values[:, start : start + count] = self.turned(k, start), v
                seen = F.scaled_dot_product_attention(
                    self.turned(q, start)[None], keys[None, :, : start + count], values[None, :, : start + count], is_causal=count > 1
                )
                x = x + F.linear(seen[0].transpose(0, 1).reshape(count, WIDTH), out)
                gate, lift = F.linear(F.rms_norm(x, (WIDTH,)), up).chunk(2, dim=-1)
                x = x + F.linear(F.silu(gate) * lift, down)
            cache["at"] += count
            return int((self.embedding @ F.rms_norm(x[-1], (WIDTH,)))[32:127].argmax()) + 32

    def cache(self):
        """For one stream."""
        shape = (HEADS, CONTEXT, WIDTH // HEADS)
        return {"at": 0, "kv": [(torch.zeros(shape, device=DEVICE, dtype=torch.bfloat16), torch.zeros(shape, device=DEVICE, dtype=torch.bfloat16)) for _ in range(LAYERS)]}  # fmt: skip


class Handler(BaseHTTPRequestHandler):
    """Chat completions, streamed or not, and a health check."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_GET(self):
        self.answer(200 if self.path == "/health" else 404, {"status": "ok"})

    def do_POST(self):
        if self.headers.get("authorization") != f"Bearer {KEY}" and KEY:
            return self.answer(401, {"error": {"message": "who are you?"}})
        asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
        prompt = "".join(str(message["content"]) for message in asked["messages"]).encode()[-CONTEXT // 2 :] or b" "
        most = min(int(asked.get("max_completion_tokens") or asked.get("max_tokens") or 64), CONTEXT // 2)
        usage = {"prompt_tokens": len(prompt), "completion_tokens": most, "total_tokens": len(prompt) + most}
        cache, tokens = MODEL.cache(), list(prompt)
        head = {"id": "chatcmpl-1", "created": int(time.time()), "model": asked.get("model", "")}
        if not asked.get("stream"):
            said = []
            for _ in range(most):
                tokens = [MODEL.step(tokens, cache)]
                said += tokens
            choice = {"index": 0, "message": {"role": "assistant", "content": bytes(said).decode()}, "finish_reason": "length"}
            return self.answer(200, head | {"object": "chat.completion", "choices": [choice], "usage": usage})
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()
        for n in range(most):
            tokens = [MODEL.step(tokens, cache)]
            choice = {"index": 0, "delta": {"content": chr(tokens[0])}, "finish_reason": "length" if n == most - 1 else None}
            self.event(head | {"object": "chat.completion.chunk", "choices": [choice]})
        if (asked.get("stream_options") or {}).get("include_usage"):
            self.event(head | {"object": "chat.completion.chunk", "choices": [], "usage": usage})
        self.chunk(b"data: [DONE]\n\n")
        return self.chunk(b"")

    def event(self, what):
        self.chunk(b"data: " + json.dumps(what).encode() + b"\n\n")

    def chunk(self, data):
        self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
        self.wfile.flush()

    def answer(self, status, what):
        data = json.dumps(what).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


if __name__ == "__main__":
    KEY = os.environ.get("HEADFRAME_API_KEY", "")
    MODEL = Model()
    MODEL.step([65, 66], MODEL.cache())
    print("ready", flush=True)
    ThreadingHTTPServer((os.environ.get("HEADFRAME_HOST", "127.0.0.1"), int(os.environ["HEADFRAME_PORT"])), Handler).serve_forever()
