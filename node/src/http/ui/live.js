// Keeps the pages up to date: on an event, the script fetches the page again and replaces the parts that differ. The browser parses the document;
// the script creates no markup from text.
"use strict";

(() => {
  const status = document.getElementById("live");
  const news = document.getElementById("news");
  if (!status || !news) return;

  let shownIndex = document.getElementById("page-index")?.dataset.index;
  let reading = false;
  let again = false;
  let retry = 0;

  const setStatus = (text, state) => {
    if (status.textContent !== text) status.textContent = text;
    status.dataset.state = state;
  };

  const fetchPage = () => new Promise((resolve, reject) => {
    const request = new XMLHttpRequest();
    // The response to a form has the form's address as its location, so the markup states the page's own path.
    request.open("GET", document.getElementById("page-index")?.dataset.page || location.pathname);
    request.responseType = "document";
    request.timeout = 10000;
    // 404: the page of a service that has no instance yet.
    request.onload = () => ([200, 404].includes(request.status) && request.response ? resolve(request.response) : reject());
    request.onerror = request.ontimeout = request.onabort = () => reject();
    request.send();
  });

  // Nothing is replaced while a pointer is pressed.
  let pressed = false;
  addEventListener("pointerdown", () => { pressed = true; });
  for (const end of ["pointerup", "pointercancel", "dragend"]) addEventListener(end, () => { pressed = false; });
  const released = async () => { while (pressed) await new Promise((resolve) => setTimeout(resolve, 50)); };

  // State of a part that only the browser has: typed text, focus, scroll positions.
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
    // A change during a fetch causes another fetch after it.
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
      shownIndex = document.getElementById("page-index")?.dataset.index;
      const newest = first(document);
      if (newest && newest.textContent !== before) news.textContent = newest.querySelector("[data-text]").textContent;
      setStatus("Live", "live");
    } catch {
      setStatus("This node does not answer; trying again", "wait");
    } finally {
      reading = false;
      if (again) {
        again = false;
        refresh();
      }
    }
  };

  // An event stream does not report why it was refused. If the session has ended, a reload redirects to the sign-in page.
  const redirectToSignIn = () => {
    const request = new XMLHttpRequest();
    request.open("HEAD", location.pathname);
    request.onload = () => { if (request.status === 401) location.reload(); };
    request.send();
  };

  const listen = () => {
    clearTimeout(retry);
    const source = new EventSource("/ui/events");
    source.addEventListener("now", (event) => {
      if (event.data === shownIndex) setStatus("Live", "live"); else refresh();
    });
    source.addEventListener("changed", refresh);
    source.onerror = () => {
      setStatus("This node does not answer; the page shows its last state", "wait");
      source.close();
      redirectToSignIn();
      retry = setTimeout(listen, 2000);
    };
    addEventListener("pagehide", () => source.close(), { once: true });
  };
  addEventListener("pageshow", (event) => { if (event.persisted) listen(); });
  // Round trips change without an event.
  setInterval(() => { if (document.visibilityState === "visible" && status.dataset.state === "live") refresh(); }, 30000);
  listen();
})();
