// Adds new records to the log page while it is open. Everything is set as text; no markup is made from what arrives.
"use strict";

(() => {
  const body = document.getElementById("records");
  const template = document.getElementById("record");
  const status = document.getElementById("live");
  const pause = document.getElementById("pause");
  if (!body || !template || !status || !pause || !body.dataset.tail) return;

  const ROWS_MAX = 500;
  const newestFirst = body.dataset.order === "newest";
  let last = body.dataset.last;
  let source = null;
  let retry = 0;

  const say = (text, state) => {
    status.textContent = text;
    status.dataset.state = state;
  };

  const add = (line) => {
    const row = template.content.firstElementChild.cloneNode(true);
    const put = (name, text) => { row.querySelector(`[data-part="${name}"]`).textContent = text; };
    const time = row.querySelector("time");
    time.dateTime = line.time;
    put("day", line.day);
    put("clock", line.clock);
    put("level", line.level || "–");
    put("service", line.service);
    put("node", line.node);
    put("message", line.message);
    row.classList.add(line.class, "fresh");
    if (newestFirst) body.prepend(row); else body.append(row);
    while (body.rows.length > ROWS_MAX) (newestFirst ? body.lastElementChild : body.firstElementChild).remove();
    document.getElementById("none")?.remove();
    if (line.id) last = line.id;
  };

  const stop = () => {
    clearTimeout(retry);
    source?.close();
    source = null;
  };

  // An event stream does not say why it was refused. Where the session has ended, the page itself leads to the page to sign in.
  const leadToSignIn = () => {
    const request = new XMLHttpRequest();
    request.open("HEAD", location.pathname);
    request.onload = () => { if (request.status === 401) location.reload(); };
    request.send();
  };

  const start = () => {
    stop();
    const url = new URL(body.dataset.tail, location.href);
    if (last) url.searchParams.set("since", last);
    source = new EventSource(url);
    const on = (kind, act) => source.addEventListener(kind, (event) => act(JSON.parse(event.data)));
    on("record", add);
    on("from", (from) => say(`Live from ${from.node}`, "live"));
    on("lost", () => say("The log node is gone; looking for another one", "wait"));
    on("absent", () => say("No log node is alive; waiting for one", "wait"));
    on("gap", () => say("Live; reload to see the records in between", "live"));
    source.onerror = () => {
      say("This node does not answer; trying again", "wait");
      // A browser tries again by itself after a broken connection, but not after a refusal. Both go on from the last record here.
      stop();
      leadToSignIn();
      retry = setTimeout(start, 2000);
    };
  };

  const isPaused = () => pause.getAttribute("aria-pressed") === "true";
  pause.hidden = false;
  pause.addEventListener("click", () => {
    const paused = !isPaused();
    pause.setAttribute("aria-pressed", String(paused));
    if (paused) {
      stop();
      say("Paused", "wait");
    } else {
      start();
    }
  });
  addEventListener("pagehide", stop);
  addEventListener("pageshow", (event) => { if (event.persisted && !isPaused()) start(); });
  start();
})();
