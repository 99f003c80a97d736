"""Train a small convolutional network on the UCI handwritten digits (1,797 images of 8 by 8, shipped with scikit-learn).

Uses a GPU if the allocation has one. Resumes from its checkpoint if an earlier attempt left one.
"""

import os
import time
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn

EPOCHS = int(os.environ.get("EPOCHS", "8"))
CHECKPOINT = Path(os.environ.get("HEADFRAME_CHECKPOINT", ".")) / "digits.pt"
BATCH = 64

torch.manual_seed(0)
torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
digits = load_digits()
images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16
labels = torch.tensor(digits.target)
train_x, test_x, train_y, test_y = train_test_split(images, labels, test_size=0.25, random_state=0, stratify=labels)
train_x, test_x, train_y, test_y = (tensor.to(device) for tensor in (train_x, test_x, train_y, test_y))
model = nn.Sequential(
    nn.Conv2d(1, 32, 3, padding=1),
    nn.ReLU(),
    nn.Conv2d(32, 64, 3, padding=1),
    nn.ReLU(),
    nn.MaxPool2d(2),
    nn.Flatten(),
    nn.Dropout(0.2),
    nn.Linear(64 * 16, 128),
    nn.ReLU(),
    nn.Linear(128, 10),
).to(device)
optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
first = 0
if CHECKPOINT.exists():
    saved = torch.load(CHECKPOINT, map_location=device, weights_only=True)
    model.load_state_dict(saved["model"])
    optimizer.load_state_dict(saved["optimizer"])
    first = saved["epoch"]
    print(f"resuming after epoch {first} of {EPOCHS}", flush=True)
parameters = sum(parameter.numel() for parameter in model.parameters())
print(f"training on {device}: {len(train_x)} images, {parameters:,} parameters, {EPOCHS} epochs", flush=True)

for epoch in range(first, EPOCHS):
    began, total = time.perf_counter(), 0.0
    model.train()
    order = torch.randperm(len(train_x), device=device)
    for start in range(0, len(order), BATCH):
        batch = order[start : start + BATCH]
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(train_x[batch]), train_y[batch])
        loss.backward()
        optimizer.step()
        total += loss.item() * len(batch)
    model.eval()
    with torch.inference_mode():
        accuracy = (model(test_x).argmax(1) == test_y).float().mean().item()
    took = time.perf_counter() - began
    print(f"epoch {epoch + 1:2}/{EPOCHS}  loss {total / len(order):.4f}  accuracy {accuracy:6.2%}  {took:.2f} s", flush=True)
    fresh = CHECKPOINT.with_suffix(".new")
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict(), "epoch": epoch + 1}, fresh)
    fresh.replace(CHECKPOINT)
print(f"done: accuracy {accuracy:.2%} on {len(test_x)} images never trained on", flush=True)
