"""Train a small network to tell what another, fixed one says, with PyTorch's DistributedDataParallel, on any number of machines.

Each rank has its own part of the examples and says its own loss. Rank 0 keeps a checkpoint after every epoch; all resume from it if an earlier
attempt left one. Uses GPUs and NCCL where there are some, else processors and gloo.
"""

import os
import time
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

EPOCHS = int(os.environ.get("EPOCHS", "10"))
PAUSE_S = float(os.environ.get("PAUSE_S", "0"))
CHECKPOINT = Path(os.environ.get("HEADFRAME_CHECKPOINT", ".")) / "ddp.pt"
BATCH, EXAMPLES = 32, 4096

gpus = torch.cuda.is_available()
dist.init_process_group("nccl" if gpus else "gloo")
rank, world = dist.get_rank(), dist.get_world_size()
torch.manual_seed(0)
torch.set_num_threads(1)
device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0"))) if gpus else torch.device("cpu")
teacher = nn.Sequential(nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 10))
examples = torch.randn(EXAMPLES, 64)
labels = (teacher(examples) * 8).argmax(1)[rank::world].to(device)
examples = examples[rank::world].to(device)
steps = EXAMPLES // world // BATCH
network = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10)).to(device)
first, optimizer = 0, torch.optim.AdamW(network.parameters(), lr=2e-3)
if CHECKPOINT.exists():
    saved = torch.load(CHECKPOINT, map_location=device, weights_only=True)
    network.load_state_dict(saved["network"])
    optimizer.load_state_dict(saved["optimizer"])
    first = saved["epoch"]
model = DistributedDataParallel(network)
print(f"rank {rank} of {world} on {device}: {len(labels)} examples, from epoch {first + 1} on", flush=True)

for epoch in range(first, EPOCHS):
    total, order = 0.0, torch.randperm(len(labels), device=device)
    for step in range(steps):
        batch = order[step * BATCH : (step + 1) * BATCH]
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(examples[batch]), labels[batch])
        loss.backward()
        optimizer.step()
        total += loss.item()
    print(f"epoch {epoch + 1:2}/{EPOCHS}  rank {rank}  loss {total / steps:.4f}", flush=True)
    if rank == 0:
        fresh = CHECKPOINT.with_suffix(".new")
        torch.save({"network": network.state_dict(), "optimizer": optimizer.state_dict(), "epoch": epoch + 1}, fresh)
        fresh.replace(CHECKPOINT)
    dist.barrier()
    time.sleep(PAUSE_S)
print(f"rank {rank}: done", flush=True)
dist.destroy_process_group()
