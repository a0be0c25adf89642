"use strict";
const stored = (key, value) => {
  try {  // a page opened from a file may have no storage
    if (value === undefined) return sessionStorage.getItem(key);
    sessionStorage.setItem(key, value);
  } catch { /* then choices are forgotten when the page is loaded again */ }
  return null;
};

for (const box of document.querySelectorAll(".explorer")) {
  const data = JSON.parse(box.dataset.geometry);
  const part = (name) => box.querySelector("." + name);
  const svg = box.querySelector("svg");
  const count = data.tasks.length;
  const cells = [];
  for (let i = 0; i < count; i++) for (let j = 0; j < count; j++) {
    if (i === j) continue;
    const [a, b] = [Math.min(i, j), Math.max(i, j)];
    cells.push({
      pair: a * count - (a * (a + 1)) / 2 + b - a - 1,
      names: data.tasks[i] + ", " + data.tasks[j],
      shape: svg.querySelector(`[id$="-c${i}-${j}"] path`),
      text: svg.querySelector(`[id$="-t${i}-${j}"] text`),
    });
  }
  for (const cell of cells) {
    cell.title = document.createElementNS(svg.namespaceURI, "title");
    cell.shape.append(cell.title);
  }
  const numbers = cells.some((cell) => cell.text && cell.text.textContent.trim());
  const [low, high] = data.scale;
  const dark = (c) => 0.299 * parseInt(c.slice(1, 3), 16) + 0.587 * parseInt(c.slice(3, 5), 16)
    + 0.114 * parseInt(c.slice(5, 7), 16) < 127.5;
  const short = (v) => (v / 10000).toFixed(data.digits).replace("0.", ".")
    .replace(/^-(\.0+)$/, "$1").replace("-", "\u2212");

  const paint = () => {
    const here = data.sources[part("source").selectedIndex]
      .granularities[part("granularity").selectedIndex];
    const windows = here.windows.length, pairs = (count * (count - 1)) / 2;
    const bytes = here.raw ? "" : atob(here.bytes);
    here.raw ??= Int16Array.from({ length: bytes.length / 2 }, (_, n) =>
      bytes.charCodeAt(2 * n) | (bytes.charCodeAt(2 * n + 1) << 8));  // little-endian
    const group = part("group").selectedIndex, window_ = +part("step").value;
    const start = (group * windows + window_) * pairs;
    for (const cell of cells) {
      const value = here.raw[start + cell.pair];
      const known = value !== -32768;
      const place = (value / 10000 - low) / (high - low);
      const most = value <= -50 ? data.faint : data.colours.length - 1;  // conflict is never white
      const n = Math.max(0, Math.min(most, Math.floor(place * data.colours.length)));
      const own = value <= -50 && data.negative ? data.negative : data.colours[n];
      const colour = known ? own : "var(--paper)";
      cell.shape.style.fill = colour;
      cell.title.textContent = cell.names + ": " + (known ? short(value) : "never met");
      if (cell.text && numbers) {
        cell.text.textContent = known ? short(value) : "";
        cell.text.style.fill = known && dark(colour) ? "#ffffff" : "#111111";
      }
    }
    const words = window_ === 0 ? "all, " + here.windows[0] : here.windows[window_];
    part("step").setAttribute("aria-valuetext", words);
    box.querySelector("output").textContent = words;
  };

  const key = (name) => name + "-" + box.dataset.number;
  const fill = (select, names) => {
    const before = select.value || stored(key(select.className));
    select.replaceChildren(...names.map((name) => new Option(name, name)));
    if (names.includes(before)) select.value = before;
  };
  const refill = () => {
    const source = data.sources[part("source").selectedIndex];
    fill(part("granularity"), source.granularities.map((g) => g.name));
    const here = source.granularities[part("granularity").selectedIndex];
    fill(part("group"), here.groups);
    part("step").max = here.windows.length - 1;
  };
  fill(part("source"), data.sources.map((s) => s.name));
  refill();
  part("step").value = stored(key("step")) || 0;
  box.addEventListener("input", (event) => {
    refill();
    paint();
    stored(key(event.target.className), event.target.value);
  });
  part("controls").hidden = false;
  paint();
}

addEventListener("beforeprint", () => {
  document.querySelectorAll("details").forEach((one) => { one.open = true; });
});
