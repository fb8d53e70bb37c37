"use strict";
(() => {
  const content = JSON.parse(document.getElementById("content").textContent);
  const WIDE = 380, HIGH = 210, LEFT = 46, RIGHT = 10, TOP = 16, BOTTOM = 24;

  function add(parent, tag, attributes, text) {
    const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
    if (text !== undefined) node.textContent = text;
    parent.append(node);
    return node;
  }

  function short(value) {
    if (value === 0) return "0";
    const size = Math.abs(value);
    if (size >= 1e5 || size < 1e-3) return value.toExponential(1);
    return String(+value.toPrecision(4));
  }

  // As in the tables (figure_text): three digits after the point, and two significant ones of what is smaller.
  function figure(value) {
    const size = Math.abs(value);
    if (size === 0 || size >= 5e-4) return value.toFixed(3);
    const [digits, exponent] = value.toExponential(1).split("e");
    if (exponent >= -4) return String(+value.toPrecision(2));
    return `${+digits}e-${String(-exponent).padStart(2, "0")}`;
  }

  // Round numbers between two ends, about five of them.
  function ticks(low, high) {
    const rough = (high - low) / 4, power = 10 ** Math.floor(Math.log10(rough));
    const step = power * [1, 2, 5, 10].find((factor) => power * factor >= rough);
    const ticks = [];
    for (let tick = Math.ceil(low / step); tick * step <= high * (1 + 1e-9); tick++) ticks.push(tick * step);
    return ticks;
  }

  function nearest(points, step) {
    return points.reduce((best, point) => (Math.abs(point[0] - step) < Math.abs(best[0] - step) ? point : best));
  }

  function draw(panel, place) {
    const lines = panel.lines.filter((line) => line.points.length);
    if (!lines.length) return;
    const box = document.createElement("div");
    box.className = "chart";
    const title = document.createElement("h3");
    title.textContent = panel.title;
    const meaning = document.createElement("p");
    meaning.className = "meaning";
    meaning.textContent = panel.meaning;
    const keys = document.createElement("div");
    keys.className = "keys";
    const labels = lines.map((line, index) => {
      const key = document.createElement("span");
      key.style.setProperty("--key", `var(--c${index % 8})`);
      keys.append(key);
      return key;
    });
    const all = lines.flatMap((line) => line.points);
    const lastStep = Math.max(1, ...all.map((point) => point[0]));
    let low = Math.min(...all.map((point) => point[1])), high = Math.max(...all.map((point) => point[1]));
    if (low >= 0 && low < 0.5 * high) low = 0;
    if (low === high) { low -= Math.abs(low) * 0.1; high += Math.abs(high) * 0.1 || 1; }
    const x = (step) => LEFT + (step / lastStep) * (WIDE - LEFT - RIGHT);
    const y = (value) => HIGH - BOTTOM - ((value - low) / (high - low)) * (HIGH - TOP - BOTTOM);
    const svg = add(box, "svg", { viewBox: `0 0 ${WIDE} ${HIGH}`, role: "img", "aria-label": panel.title });
    for (const tick of ticks(low, high)) {
      add(svg, "line", { class: "grid", x1: LEFT, x2: WIDE - RIGHT, y1: y(tick), y2: y(tick) });
      add(svg, "text", { x: LEFT - 6, y: y(tick) + 4, "text-anchor": "end" }, short(tick));
    }
    for (const tick of ticks(0, lastStep).filter(Number.isInteger)) {
      add(svg, "text", { x: x(tick), y: HIGH - 6, "text-anchor": "middle" }, short(tick));
    }
    for (const [step, name] of content.switches) {
      add(svg, "line", { class: "switch", x1: x(step), x2: x(step), y1: TOP, y2: HIGH - BOTTOM });
      const late = step > 0.7 * lastStep;
      add(svg, "text", { x: x(step), y: TOP - 4, "text-anchor": late ? "end" : "start" }, name);
    }
    lines.forEach((line, index) => {
      const colour = `stroke: var(--c${index % 8})`;
      const path = line.points.map((point, at) => `${at ? "L" : "M"}${x(point[0]).toFixed(1)} ${y(point[1]).toFixed(1)}`);
      add(svg, "path", { d: path.join(""), style: colour });
      if (line.points.length <= 12) {
        for (const point of line.points) {
          add(svg, "circle", { cx: x(point[0]), cy: y(point[1]), r: 2.6, style: `fill: var(--c${index % 8})` });
        }
      }
    });
    const cursor = add(svg, "line", { class: "cursor", y1: TOP, y2: HIGH - BOTTOM, x1: 0, x2: 0 });

    function showValues(step) {
      lines.forEach((line, index) => {
        const name = line.name.slice(line.name.indexOf("/") + 1);
        const point = step === null ? line.points[line.points.length - 1] : nearest(line.points, step);
        labels[index].textContent = `${name} ${figure(point[1])}` + (step === null ? "" : ` @ ${point[0]}`);
      });
      cursor.style.visibility = step === null ? "hidden" : "visible";
      if (step !== null) for (const end of ["x1", "x2"]) cursor.setAttribute(end, x(step));
    }
    svg.addEventListener("pointermove", (event) => {
      const area = svg.getBoundingClientRect();
      const at = ((event.clientX - area.left) / area.width) * WIDE;
      showValues(Math.min(lastStep, Math.max(0, ((at - LEFT) / (WIDE - LEFT - RIGHT)) * lastStep)));
    });
    svg.addEventListener("pointerleave", () => showValues(null));
    showValues(null);
    box.prepend(title, meaning);
    box.append(keys);
    place.append(box);
  }

  const charts = document.getElementById("charts"), more = document.getElementById("more");
  if (charts) content.panels.forEach((panel) => draw(panel, charts));
  if (more) content.more.forEach((panel) => draw(panel, more));

  // A heading sorts the rows by its column: numbers from the highest on, texts by name, and once more the other way.
  document.querySelectorAll(".sortable table").forEach((table) => {
    const heads = [...table.tHead.rows[0].cells], body = table.tBodies[0];
    const change = heads.findIndex((head) => head.textContent === "change");
    for (const row of change < 0 ? [] : body.rows) {
      const cell = row.cells[change], value = parseFloat(cell.textContent);
      if (value) cell.className = value > 0 ? "gain" : "loss";
    }
    if (body.rows.length < 2) return;
    if (change >= 0) heads[change].setAttribute("aria-sort", "descending");
    heads.forEach((head, column) => {
      const button = document.createElement("button");
      button.textContent = head.textContent;
      head.replaceChildren(button);
      button.addEventListener("click", () => {
        const text = (row) => row.cells[column].textContent;
        const rows = [...body.rows], numbers = rows.some((row) => !Number.isNaN(parseFloat(text(row)))) && column > 0;
        const given = head.getAttribute("aria-sort");
        const descending = given ? given === "ascending" : numbers;
        const sign = descending ? -1 : 1;
        // Without a value last, in either order.
        const value = (row) => (Number.isNaN(parseFloat(text(row))) ? sign * Infinity : parseFloat(text(row)));
        const compare = numbers
          ? (a, b) => (value(a) === value(b) ? 0 : sign * (value(a) - value(b)))
          : (a, b) => sign * text(a).localeCompare(text(b), undefined, { numeric: true });
        body.append(...rows.sort(compare));
        heads.forEach((other) => other.removeAttribute("aria-sort"));
        head.setAttribute("aria-sort", descending ? "descending" : "ascending");
      });
    });
  });

  const picture = document.getElementById("gallery-picture"), slider = document.getElementById("gallery-slider");
  if (picture) {
    const show = () => {
      const gallery = content.galleries[slider ? slider.value : 0];
      picture.src = gallery.src;
      const text = gallery.step === 0 ? "before training" : `step ${gallery.step}`;
      document.getElementById("gallery-step").textContent = text;
      if (slider) slider.setAttribute("aria-valuetext", text);
    };
    if (slider) slider.addEventListener("input", show);
    show();
  }
})();
