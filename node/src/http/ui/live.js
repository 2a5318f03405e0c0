// Keeps the cluster page up to date: told that something is new, it reads the page again and puts in the parts that differ. The browser
// makes the document; no markup is made from text here.
"use strict";

(() => {
  const status = document.getElementById("live");
  const news = document.getElementById("news");
  if (!status || !news) return;

  let shown = document.getElementById("page-index")?.dataset.index;
  let reading = false;
  let again = false;
  let retry = 0;

  const say = (text, state) => {
    if (status.textContent !== text) status.textContent = text;
    status.dataset.state = state;
  };

  const fetchPage = () => new Promise((resolve, reject) => {
    const request = new XMLHttpRequest();
    request.open("GET", location.pathname);
    request.responseType = "document";
    request.timeout = 10000;
    request.onload = () => (request.status === 200 && request.response ? resolve(request.response) : reject());
    request.onerror = request.ontimeout = request.onabort = () => reject();
    request.send();
  });

  const refresh = async () => {
    // Changes that come while a page is read are in the next one.
    if (reading) {
      again = true;
      return;
    }
    reading = true;
    try {
      const next = await fetchPage();
      const first = (root) => root.querySelector(".timeline li");
      const before = first(document)?.textContent;
      for (const part of document.querySelectorAll("[data-live]")) {
        const fresh = next.getElementById(part.id);
        if (!fresh || fresh.isEqualNode(part)) continue;
        const focused = part.contains(document.activeElement) ? document.activeElement.getAttribute("href") : null;
        const scrolled = [...part.querySelectorAll("[data-scroll]")].map((list) => list.scrollTop);
        const adopted = document.adoptNode(fresh);
        part.replaceWith(adopted);
        adopted.querySelectorAll("[data-scroll]").forEach((list, i) => { list.scrollTop = scrolled[i] || 0; });
        if (focused) [...adopted.querySelectorAll("a")].find((a) => a.getAttribute("href") === focused)?.focus({ preventScroll: true });
      }
      shown = document.getElementById("page-index")?.dataset.index;
      const newest = first(document);
      if (newest && newest.textContent !== before) news.textContent = newest.querySelector("[data-text]").textContent;
      say("Live", "live");
    } catch {
      say("This node does not answer; trying again", "wait");
    } finally {
      reading = false;
      if (again) {
        again = false;
        refresh();
      }
    }
  };

  const listen = () => {
    clearTimeout(retry);
    const source = new EventSource("/ui/events");
    source.addEventListener("now", (event) => {
      if (event.data === shown) say("Live", "live"); else refresh();
    });
    source.addEventListener("changed", refresh);
    source.onerror = () => {
      say("This node does not answer; this is what it last said", "wait");
      source.close();
      retry = setTimeout(listen, 2000);
    };
    addEventListener("pagehide", () => source.close(), { once: true });
  };
  addEventListener("pageshow", (event) => { if (event.persisted) listen(); });
  // Round trips change without an event.
  setInterval(() => { if (document.visibilityState === "visible" && status.dataset.state === "live") refresh(); }, 30000);
  listen();
})();
