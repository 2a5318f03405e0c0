// Keeps the pages of the cluster and its services up to date: told that something is new, it reads the page again and puts in the parts
// that differ. The browser makes the document; no markup is made from text here.
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
    // A page that answers a form stands under the form's address.
    request.open("GET", document.getElementById("page-index")?.dataset.page || location.pathname);
    request.responseType = "document";
    request.timeout = 10000;
    // 404: a page that waits for the first instance of its service.
    request.onload = () => ([200, 404].includes(request.status) && request.response ? resolve(request.response) : reject());
    request.onerror = request.ontimeout = request.onabort = () => reject();
    request.send();
  });

  // What a hand is doing must not be taken away from under it.
  let pressed = false;
  addEventListener("pointerdown", () => { pressed = true; });
  for (const end of ["pointerup", "pointercancel", "dragend"]) addEventListener(end, () => { pressed = false; });
  const released = async () => { while (pressed) await new Promise((resolve) => setTimeout(resolve, 50)); };

  // What a part holds that the node knows nothing of: what is typed, where the focus is, how far lists are scrolled.
  const remember = (part) => {
    const at = part.contains(document.activeElement) ? document.activeElement : null;
    return {
      href: at?.getAttribute("href"),
      id: at?.id,
      selection: at instanceof HTMLInputElement ? [at.selectionStart, at.selectionEnd] : null,
      typed: [...part.querySelectorAll("input[id]")].map((field) => [field.id, field.value]),
      scrolled: [...part.querySelectorAll("[data-scroll]")].map((list) => [list.scrollTop, list.scrollLeft]),
    };
  };
  const restore = (part, kept) => {
    part.querySelectorAll("[data-scroll]").forEach((list, i) => { [list.scrollTop, list.scrollLeft] = kept.scrolled[i] || [0, 0]; });
    for (const [id, value] of kept.typed) {
      const field = document.getElementById(id);
      if (field) field.value = value;
    }
    const to = (kept.id && document.getElementById(kept.id)) || (kept.href && [...part.querySelectorAll("a")].find((a) => a.getAttribute("href") === kept.href));
    if (to) to.focus({ preventScroll: true });
    if (to && kept.selection) to.setSelectionRange(...kept.selection);
  };

  const refresh = async () => {
    // Changes that come while a page is read are in the next one.
    if (reading) {
      again = true;
      return;
    }
    reading = true;
    try {
      const next = await fetchPage();
      await released();
      const first = (root) => root.querySelector(".timeline li");
      const before = first(document)?.textContent;
      for (const part of document.querySelectorAll("[data-live]")) {
        const fresh = next.getElementById(part.id);
        if (!fresh || fresh.isEqualNode(part)) continue;
        const kept = remember(part);
        const adopted = document.adoptNode(fresh);
        part.replaceWith(adopted);
        restore(adopted, kept);
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
