// The playground: what is written goes to this server, which asks the gateway in the name of whoever is signed in; the answer is shown as it comes.
"use strict";
const form = document.getElementById("ask"), said = document.getElementById("said"), used = document.getElementById("used");
const halt = document.getElementById("halt"), send = document.getElementById("send"), message = document.getElementById("message");
const turns = [];

function show(role, text) {
  const shown = document.createElement("p");
  shown.className = role;
  shown.textContent = text;
  said.append(shown);
  shown.scrollIntoView({ block: "nearest" });
  return shown;
}

function cost(usage) {
  const option = form.elements.endpoint.selectedOptions[0];
  const nano = (usage.prompt_tokens * option.dataset.in + usage.completion_tokens * option.dataset.out) / 1e6;
  return nano ? `, $${(nano / 1e9).toPrecision(3)}` : "";
}

async function* events(answer) {
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const parts = (rest + value).split(/\r?\n\r?\n/);
    rest = parts.pop();
    for (const part of parts) {
      const data = part.split(/\r?\n/).filter((line) => line.startsWith("data:")).map((line) => line.slice(5).trim()).join("\n");
      if (data && data !== "[DONE]") yield JSON.parse(data);
    }
  }
}

async function talk(stop) {
  const body = new URLSearchParams(new FormData(form));
  body.set("turns", JSON.stringify(turns));
  const answer = await fetch(form.action, { method: "POST", body, signal: stop.signal, redirect: "error" });
  const shown = show("assistant", "");
  if (!answer.ok) {
    const problem = await answer.json().catch(() => ({}));
    throw new Error(problem.error?.message ?? problem.detail ?? `the server answered ${answer.status}`);
  }
  const began = performance.now();
  for await (const event of events(answer)) {
    if (event.error) throw new Error(event.error.message);
    shown.textContent += event.choices?.[0]?.delta?.content ?? "";
    if (event.usage) {
      const seconds = (performance.now() - began) / 1000;
      used.textContent = `${event.usage.prompt_tokens} tokens in, ${event.usage.completion_tokens} out${cost(event.usage)}, ${(event.usage.completion_tokens / seconds).toFixed(0)} tokens/s`;
    }
    shown.scrollIntoView({ block: "nearest" });
  }
  turns.push({ role: "assistant", content: shown.textContent });
}

if (form) {
  message.addEventListener("keydown", (key) => { if (key.key === "Enter" && !key.shiftKey) { key.preventDefault(); form.requestSubmit(); } });
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    if (send.disabled) return;
    const stop = new AbortController();
    turns.push({ role: "user", content: message.value });
    show("user", message.value);
    message.value = used.textContent = "";
    send.disabled = true;
    halt.hidden = false;
    halt.onclick = () => stop.abort();
    try { await talk(stop); } catch (error) { if (!stop.signal.aborted) show("problem", error.message); turns.pop(); }
    send.disabled = false;
    halt.hidden = true;
    message.focus();
  });
  message.disabled = send.disabled = false;  // the page comes with both disabled: what is sent before this script has run would be lost
  message.focus();
}
