// Everything that a page can try against a server of another origin. `PLAN` names the targets: origins with their writes and reads.
// `outcome` says which attempts were made, how many of them a server has to decide on, and what the page could read.
"use strict";

const outcome = { made: [], decided: 0, read: {}, done: false };
// No answer takes longer on a busy machine. An attempt without an answer by then has read nothing; streams are left there.
const LIMIT = 10000;
// Attempts at the same time against one target. Browsers open six connections to a host.
const AT_A_TIME = 6;

const pause = time => new Promise(resolve => setTimeout(resolve, time));
const late = () => new Promise((_, reject) => setTimeout(reject, LIMIT));

async function until(fact) {
  const end = Date.now() + LIMIT;
  while (!fact() && Date.now() < end) await pause(5);
}

/** The address of an attempt. A server that only records is told the name of the attempt. */
function address(target, path, name) {
  return target.origin + path + (PLAN.mark ? `?by=${encodeURIComponent(name)}` : "");
}

/** Makes an attempt. What `make` resolves to, unless it is empty, was read. */
async function attempt(name, url, isDecided, make) {
  outcome.made.push(name);
  outcome.decided += isDecided;
  try {
    const read = await Promise.race([make(url), late()]);
    if (read) outcome.read[name] = String(read).slice(0, 200);
  } catch {
    // Refused by the browser or by the server.
  }
}

/** Adds an element, waits for its load or its failure, and reads what `read` finds. `act` begins what is waited for. */
async function element(tag, attributes, read, act = () => {}) {
  const made = Object.assign(document.createElement(tag), attributes);
  const listen = () => new Promise(resolve => made.onload = made.onerror = made.onloadedmetadata = resolve);
  // A frame without an address is loaded while it is added.
  let over = listen();
  document.body.append(made);
  if (attributes.name) over = listen();
  act();
  try {
    await Promise.race([over, late()]);
    return read(made);
  } finally {
    made.remove();
  }
}

const text = async answer => (await answer).text();

/** Every way to load an address and to read what comes. */
const LOADS = {
  fetch: url => text(fetch(url)),
  credentials: url => text(fetch(url, { credentials: "include" })),
  xhr: url => new Promise((resolve, reject) => {
    const request = new XMLHttpRequest();
    request.open("GET", url);
    request.onload = () => resolve(request.responseText);
    request.onerror = reject;
    request.send();
  }),
  script: url => element("script", { src: url }, () => {
    const read = window.leaked;
    delete window.leaked;
    return read;
  }),
  module: async url => (await import(url)).default,
  worker: url => new Promise((resolve, reject) => {
    const source = `try { importScripts(${JSON.stringify(url)}) } catch {} postMessage(self.leaked);`;
    const worker = new Worker(URL.createObjectURL(new Blob([source])));
    worker.onmessage = message => resolve(message.data);
    worker.onerror = reject;
  }),
  style: url => element("link", { rel: "stylesheet", href: url }, () => {
    const color = getComputedStyle(document.getElementById("careless")).color;
    return color === "rgb(255, 0, 0)" && color;
  }),
  image: url => element("img", { src: url }, image => image.naturalWidth),
  font: url => new FontFace("stolen", `url(${JSON.stringify(url)})`).load().then(() => "a font"),
  frame: url => element("iframe", { src: url }, frame => frame.contentDocument.body.innerText),
  object: url => element("object", { data: url }, object => object.contentDocument.body.innerText),
  events: url => new Promise((resolve, reject) => {
    const events = new EventSource(url);
    const end = over => value => { events.close(); over(value); };
    events.onmessage = end(message => resolve(message.data));
    events.onopen = () => resolve("a stream");
    events.onerror = end(reject);
  }),
};

/** Those that do not wait for the end of what comes, nor for a frame that shows it. */
const UNFRAMED = ["fetch", "script", "events"];

/** More ways to load an address. By most of them nothing can be read, and sockets that fail have to wait for each other. */
const GETS = {
  socket: url => new Promise((resolve, reject) => {
    const socket = new WebSocket(url.replace(/^http/, "ws"));
    socket.onopen = () => resolve("a socket");
    socket.onmessage = message => resolve(message.data);
    socket.onerror = reject;
  }),
  opaque: url => text(fetch(url, { mode: "no-cors" })),
  nameless: url => text(fetch(url, { mode: "no-cors", referrerPolicy: "no-referrer" })),
  keepalive: url => text(fetch(url, { mode: "no-cors", keepalive: true })),
  redirected: url => text(fetch(`/redirect/302/${url}`, { mode: "no-cors" })),
  prefetch: url => element("link", { rel: "prefetch", href: url }, () => null),
  again: url => element("img", { src: `/redirect/302/${url}` }, () => null),
  video: url => element("video", { src: url }, () => null),
};

/** A form with these fields, sent into a frame or a window. */
function form(url, enctype, fields, target) {
  const made = Object.assign(document.createElement("form"), { method: "post", action: url, enctype, target });
  for (const [name, value] of fields) made.append(Object.assign(document.createElement("input"), { name, value }));
  document.body.append(made);
  made.submit();
  made.remove();
}

let frames = 0;

function formInFrame(url, enctype, fields) {
  const name = `frame${frames++}`;
  return element("iframe", { name }, () => null, () => form(url, enctype, fields, name));
}

/** The fields whose form in plain text is this JSON: the equals sign between name and value ends in a string. */
const plain = json => [[`${json.slice(0, -1)},"x":"`, '"}']];
const fields = write => [...new URLSearchParams(write.form)];

/** Every way to send a write that a browser does not ask about before. */
const SENDS = {
  bare: (url, write) => text(fetch(url, { method: "POST", body: new Blob([write.body]) })),
  plain: (url, write) => text(fetch(url, { method: "POST", mode: "no-cors", body: write.body })),
  encoded: (url, write) =>
    text(fetch(url, { method: "POST", mode: "no-cors", body: new URLSearchParams(write.form) })),
  multipart: (url, write) => {
    const body = new FormData();
    fields(write).forEach(([name, value]) => body.append(name, value));
    return text(fetch(url, { method: "POST", mode: "no-cors", body }));
  },
  empty: url => text(fetch(url, { method: "POST", mode: "no-cors" })),
  no_referrer: (url, write) =>
    text(fetch(url, { method: "POST", mode: "no-cors", referrerPolicy: "no-referrer", body: write.body })),
  passed_on: (url, write) =>
    text(fetch(`/redirect/307/${url}`, { method: "POST", mode: "no-cors", body: new URLSearchParams(write.form) })),
  xhr_post: (url, write) => new Promise((resolve, reject) => {
    const request = new XMLHttpRequest();
    request.open("POST", url);
    request.withCredentials = true;
    request.onload = () => resolve(request.responseText);
    request.onerror = reject;
    request.send(write.body);
  }),
  beacon: (url, write) => void navigator.sendBeacon(url, write.body),
  form: (url, write) => formInFrame(url, "application/x-www-form-urlencoded", fields(write)),
  form_multipart: (url, write) => formInFrame(url, "multipart/form-data", fields(write)),
  form_plain: (url, write) => formInFrame(url, "text/plain", plain(write.body)),
  form_sandboxed: (url, write) => {
    const inputs = fields(write).map(([name, value]) => `<input name="${name}" value="${value}">`).join("");
    const srcdoc = `<form method=post action="${url}">${inputs}</form><script>document.forms[0].submit()</script>`;
    return element("iframe", { sandbox: "allow-forms allow-scripts", srcdoc }, () => pause(50));
  },
  ping: url => {
    const link = Object.assign(document.createElement("a"), { href: "#", ping: url });
    document.body.append(link);
    link.click();
    link.remove();
  },
  report: url => element("iframe", { src: `/report/${url}` }, () => pause(50)),
};

/** Every way to send a write that a browser asks about first: it gets no leave. */
const ASKS = {
  json: (url, write) => text(fetch(url, {
    method: write.method, body: write.method === "DELETE" ? null : write.body, headers: { "content-type": "application/json" },
  })),
  beacon_json: (url, write) =>
    void navigator.sendBeacon(url, new Blob([write.body], { type: "application/json" })),
};

/** Has a window of this page go somewhere, and reads it. Its location can be read only while it is of this page's origin. */
async function topLevel(go) {
  const isForeign = () => {
    try {
      return top_.location.href !== "about:blank";
    } catch {
      return true;
    }
  };
  const top_ = window.open("about:blank", "top_");
  await until(() => !isForeign());
  await go("top_");
  await until(isForeign);
  return top_.document.body.innerText;
}

async function inTurn(all, atATime) {
  const next = async () => {
    while (all.length) await all.shift()();
  };
  await Promise.all(Array.from({ length: atATime }, next));
}

/** All attempts against other origins. */
async function strangers() {
  const queues = [], one = [];
  const add = (list, name, target, path, isDecided, make) =>
    list.push(() => attempt(name, address(target, path, name), isDecided, make));
  for (const target of PLAN.targets) {
    const many = [];
    queues.push(many);
    for (const write of target.writes) {
      const what = `${write.method}-${target.origin}${write.path}`;
      if (write.method === "GET") {
        const ways = Object.entries({ ...LOADS, ...GETS });
        for (const [way, make] of ways) {
          // A browser may take what it fetched ahead of need for another load of the same site.
          add(many, `${way}-${what}`, target, write.path, way !== "prefetch", make);
        }
        add(one, `window-${what}`, target, write.path, true, url => topLevel(name => window.open(url, name)));
        continue;
      }
      const ways = Object.entries(write.method === "POST" ? { ...SENDS, ...ASKS } : { json: ASKS.json });
      for (const [way, make] of ways) {
        add(many, `${way}-${what}`, target, write.path, way in SENDS, url => make(url, write));
      }
      if (write.method === "POST") {
        const go = url => topLevel(name => form(url, "application/x-www-form-urlencoded", fields(write), name));
        add(one, `form_top-${what}`, target, write.path, true, go);
      }
    }
    for (const path of target.unframed) {
      const what = `GET-${target.origin}${path}`;
      UNFRAMED.forEach(way => add(many, `${way}-${what}`, target, path, false, LOADS[way]));
      add(many, `socket-${what}`, target, path, false, GETS.socket);
    }
    for (const path of target.reads) {
      const what = `GET-${target.origin}${path}`;
      Object.entries(LOADS).forEach(([way, make]) => add(many, `${way}-${what}`, target, path, false, make));
      add(one, `window-${what}`, target, path, false, url => topLevel(name => window.open(url, name)));
    }
  }
  await Promise.all(queues.map(many => inTurn(many, AT_A_TIME)));
  await inTurn(one, 1);
}

/**
 * All attempts of a page whose own name has come to lead to the node. What is not answered as misdirected counts as read; but a gateway asks for
 * the proof that a GET which writes needs before it looks for the node.
 */
async function rebound() {
  const isOther = async () => {
    try {
      return await text(fetch("/livez", { cache: "no-store" })) !== "careless";
    } catch {
      return false;
    }
  };
  while (!await isOther()) await pause(50);
  const misdirected = async (answer, isWritingGet) => {
    answer = await answer;
    const isRefused = answer.status === 421 || isWritingGet && answer.status === 401;
    return isRefused ? null : `${answer.status} ${await answer.text()}`;
  };
  const all = [];
  const [target] = PLAN.targets;
  const add = (name, path, make) => all.push(() => attempt(name, path, true, make));
  for (const write of target.writes) {
    const { method, path } = write;
    const body = ["GET", "DELETE"].includes(method) ? null : write.body;
    const headers = { "content-type": "application/json" };
    add(`json-${method}-${path}`, path, url => misdirected(fetch(url, { method, body, headers }), method === "GET"));
    if (method !== "POST") continue;
    const encoded = new URLSearchParams(write.form);
    add(`encoded-POST-${path}`, path, url => misdirected(fetch(url, { method, body: encoded })));
  }
  for (const path of [...target.reads, ...target.unframed]) add(`fetch-GET-${path}`, path, url => misdirected(fetch(url)));
  await inTurn(all, AT_A_TIME);
}

(PLAN.rebinds ? rebound() : strangers()).finally(() => outcome.done = true);
