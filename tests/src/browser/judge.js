// What is wrong with how a page looks and how it can be used: the parts of WCAG 2.2 (AA) that a program can measure. Gives a list.
(() => {
  const faults = [];
  const what = (el) => `${el.tagName.toLowerCase()}${el.className && el.className.baseVal === undefined ? "." + String(el.className).replaceAll(" ", ".") : ""} ${JSON.stringify((el.textContent || el.name || "").trim().slice(0, 30))}`;
  // What is there for screen readers alone is a pixel wide.
  const isSeen = (el) => {
    const box = el.getBoundingClientRect();
    return box.width > 1 && box.height > 1 && el.checkVisibility({ opacityProperty: true, visibilityProperty: true }) && !el.closest(".sr, .skip");
  };

  // Colours: drawn onto one pixel, so that every way to write them is understood.
  const pixel = Object.assign(document.createElement("canvas"), { width: 1, height: 1 }).getContext("2d", { willReadFrequently: true });
  const rgba = (colour) => {
    pixel.clearRect(0, 0, 1, 1);
    pixel.fillStyle = colour;
    pixel.fillRect(0, 0, 1, 1);
    const [r, g, b, a] = pixel.getImageData(0, 0, 1, 1).data;
    return [r, g, b, a / 255];
  };
  const over = (top, below) => [0, 1, 2].map((i) => top[i] * top[3] + below[i] * (1 - top[3])).concat(1);
  const ground = (el) => {
    const layers = [];
    for (let at = el; at; at = at.parentElement) {
      const colour = rgba(getComputedStyle(at).backgroundColor);
      layers.push(colour);
      if (colour[3] === 1) break;
    }
    return layers.reduceRight((below, top) => over(top, below), rgba(getComputedStyle(document.documentElement).colorScheme.includes("dark") && matchMedia("(prefers-color-scheme: dark)").matches ? "#121212" : "#fff"));
  };
  const light = ([r, g, b]) => [r, g, b].map((c) => c / 255).map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4)).reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
  const contrast = (a, b) => {
    const [x, y] = [light(a), light(b)].sort((m, n) => n - m);
    return (x + 0.05) / (y + 0.05);
  };
  const faint = (el, colour, least, of) => {
    const below = ground(el);
    const ratio = contrast(over(rgba(colour), below), below);
    if (ratio < least) faults.push(`contrast ${ratio.toFixed(2)} of ${of}: ${what(el)}`);
  };

  const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  const judged = new Set();
  while (texts.nextNode()) {
    const el = texts.currentNode.parentElement;
    if (judged.has(el) || !texts.currentNode.data.trim() || !isSeen(el) || /^(TITLE|DESC|NOSCRIPT|OPTION|SCRIPT)$/i.test(el.tagName)) continue;
    judged.add(el);
    const style = getComputedStyle(el);
    faint(el, el instanceof SVGElement ? style.fill : style.color, 4.5, "text");
    if (parseFloat(style.fontSize) < 12 && !(el instanceof SVGElement)) faults.push(`text of ${style.fontSize}: ${what(el)}`);
  }

  const controls = [...document.querySelectorAll("input:not([type=hidden]), select, textarea, button")].filter(isSeen);
  for (const control of controls) {
    const style = getComputedStyle(control);
    const name = control.getAttribute("aria-label") || [...(control.labels || [])].map((label) => label.textContent).join(" ") || (control.tagName === "BUTTON" ? control.textContent : "");
    if (!name.trim()) faults.push(`no label: ${what(control)}`);
    if (control.tagName !== "BUTTON") {
      faint(control.parentElement, style.borderTopColor, 3, "the edge of a field");
      if (control.placeholder) faint(control, getComputedStyle(control, "::placeholder").color, 4.5, "a placeholder");
    }
    if (control.getBoundingClientRect().height < 24) faults.push(`lower than 24 px: ${what(control)}`);
  }

  const wide = document.documentElement.scrollWidth;
  if (wide > innerWidth) faults.push(`${wide} px wide, of ${innerWidth}`);
  for (const el of document.querySelectorAll("body *")) {
    if (!isSeen(el) || el.closest("svg svg, [data-scroll]")) continue;
    const box = el.getBoundingClientRect();
    if (box.right > innerWidth + 1 || box.left < -1) faults.push(`sticks out to ${Math.round(box.right)}: ${what(el)}`);
    const style = getComputedStyle(el);
    if (style.overflowX === "hidden" && el.scrollWidth > el.clientWidth + 1 && !(el instanceof SVGElement)) faults.push(`cut off: ${what(el)}`);
  }

  const headings = [...document.querySelectorAll("h1, h2, h3, h4")].filter(isSeen).map((h) => Number(h.tagName[1]));
  if (headings[0] !== 1 || headings.filter((level) => level === 1).length !== 1) faults.push(`headings: ${headings}`);
  headings.forEach((level, i) => { if (i && level > headings[i - 1] + 1) faults.push(`a heading of level ${level} after ${headings[i - 1]}`); });

  const ids = [...document.querySelectorAll("[id]")].map((el) => el.id);
  ids.filter((id, i) => ids.indexOf(id) < i).forEach((id) => faults.push(`two have the id ${id}`));
  for (const el of document.querySelectorAll("[aria-labelledby], [aria-describedby]")) {
    for (const id of `${el.getAttribute("aria-labelledby") || ""} ${el.getAttribute("aria-describedby") || ""}`.trim().split(/\s+/)) {
      if (!document.getElementById(id)) faults.push(`nothing has the id ${id}, which is meant to describe ${what(el)}`);
    }
  }
  for (const table of document.querySelectorAll("table")) if (!table.caption) faults.push("a table without a caption");
  for (const svg of document.querySelectorAll("svg:not([aria-hidden])")) if (!svg.querySelector("title")) faults.push("a drawing without a title");
  if (!document.documentElement.lang || !document.title) faults.push("no language or no title");
  if (document.getAnimations().length) faults.push("something moves");
  return faults;
})()
