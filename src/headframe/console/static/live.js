// Live updates: when something is committed, fetch this page again and replace the parts marked data-live that changed;
// and follow a log. Everything else works without this file.
"use strict";
const badge = document.querySelector(".live");
const CONTROL = /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u200e\u200f\u202a-\u202e\u2066-\u2069]/g;
const ESCAPES = /\u001b(?:\[[0-?]*[ -\/]*[@-~]|\][^\u0007\u001b]*(?:\u0007|\u001b\\)?|.)?/g;
const LINES_MAX = 5000;
const PAUSE_MS = document.querySelector("[data-slow]") ? 5000 : 250; // a page of ten thousand cells is not fetched at each event
let busy = false, again = false;

async function refresh() {
  if (busy) { again = true; return; }
  busy = true;
  try {
    const answer = await fetch(location.href, { headers: { Accept: "text/html" }, redirect: "error" });
    if (answer.ok) swap(new DOMParser().parseFromString(await answer.text(), "text/html"));
  } catch { /* the server is away: the stream tells when it is back */ }
  setTimeout(() => { busy = false; if (again) { again = false; refresh(); } }, PAUSE_MS);
}

function swap(fresh) {
  for (const old of document.querySelectorAll("[data-live][id]")) {
    const now = fresh.getElementById(old.id);
    if (now && now.outerHTML !== old.outerHTML && !old.contains(document.activeElement)) old.replaceWith(document.adoptNode(now));
  }
}

function watch() {
  const stream = new EventSource("/v1/events/stream");
  stream.onopen = () => { badge.className = "live on"; refresh(); };
  stream.onerror = () => { badge.className = "live on lost"; };
  stream.addEventListener("event", refresh);
}

function followLog(log) {
  const stream = new EventSource(log.dataset.follow);
  stream.addEventListener("line", (message) => {
    const line = JSON.parse(message.data), shown = document.createElement("span");
    const atEnd = log.scrollHeight - log.scrollTop - log.clientHeight < 40;
    shown.className = line.stream;
    shown.textContent = line.text.replace(ESCAPES, "").replace(/\r+$/, "").split("\r").pop().replace(CONTROL, "") + "\n";
    log.append(shown);
    while (log.childElementCount > LINES_MAX) log.firstElementChild.remove();
    if (atEnd) log.scrollTop = log.scrollHeight;
  });
  stream.addEventListener("state", refresh);
  stream.addEventListener("end", () => { stream.close(); refresh(); });
}

if (badge) {
  watch();
  setInterval(() => { if (!document.hidden) refresh(); }, 10000);
  const log = document.getElementById("log");
  if (log) { log.scrollTop = log.scrollHeight; if (log.dataset.follow) followLog(log); }
}
