"use strict";
const byId = (name) => document.getElementById(name);
const models = [...document.querySelectorAll(".model")];
const state = { image: null, truth: [], answers: models.map(() => null), ratings: models.map(() => null) };
const PALETTE = ["#e03131", "#1971c2", "#2b8a3e", "#9c36b5", "#e8590c", "#0c8599", "#c2255c", "#5f3dc4"];

async function send(path, body, type) {
  const response = await fetch(path, { method: "POST", headers: { "content-type": type || "application/json" },
    body: type ? body : JSON.stringify(body) });
  const answer = await response.json().catch(() => ({ error: `${path}: no answer (${response.status})` }));
  if (!response.ok) throw new Error(answer.error || `${path}: ${response.status}`);
  return answer;
}

function say(text, isError) {
  byId("message").textContent = text;
  byId("message").classList.toggle("error", Boolean(isError));
}

async function trying(work) {
  try { await work(); } catch (error) { say(error.message || String(error), true); }
}

// Images

async function take(file) {
  say(`reading ${file.name}`);
  show(await send(`/image?name=${encodeURIComponent(file.name)}`, file, "application/octet-stream"), []);
  say(`${file.name}, ${state.image.width} x ${state.image.height} pixels`);
}

function show(image, truth) {
  state.image = image;
  state.truth = truth;
  state.answers.fill(null);
  state.ratings.fill(null);
  for (const model of models) {
    const picture = model.querySelector(".picture");
    picture.replaceChildren();
    const photo = document.createElement("img");
    photo.src = `/image/${image.image}`;
    photo.alt = "the chosen image";
    photo.width = image.width;
    photo.height = image.height;
    photo.draggable = false;
    const layer = document.createElement("div");
    layer.className = "layer";
    picture.append(photo, layer);
    picture.style.aspectRatio = `${image.width} / ${image.height}`;
    picture.style.maxWidth = `calc(70vh * ${image.width / image.height})`;
    model.querySelector(".answer").textContent = "";
    model.querySelector(".state").textContent = "";
    drawing(picture);
  }
  byId("tools").hidden = false;
  byId("find").disabled = false;
  labels();
  paint();
}

// Questions

const names = () => byId("kind").value ? [byId("what").value.trim()]
  : byId("what").value.split(",").map((name) => name.trim());

function labels() {
  const chosen = byId("label").value;
  const known = [...new Set([...names(), ...state.truth.map((item) => item.label)].filter(Boolean))];
  byId("label").replaceChildren(...known.map((name) => new Option(name, name, false, name === chosen)));
}

async function ask() {
  const { image } = state.image, what = byId("what").value, referring = Boolean(byId("kind").value);
  byId("find").disabled = true;
  try {
    for (const [index, model] of models.entries()) {
      const line = model.querySelector(".state");
      line.textContent = "looking ...";
      model.classList.add("busy");
      try {
        const answer = await send("/find", { image, model: index, what, referring });
        if (!state.image || state.image.image !== image) return;
        state.answers[index] = answer;
        state.ratings[index] = null;
        const count = answer.boxes.length;
        const faults = [...(answer.valid ? [] : ["not in the exact form"]), ...answer.problems];
        line.textContent = `${count} ${count === 1 ? "box" : "boxes"} in ${answer.seconds.toFixed(1)} s`
          + (faults.length ? `; ${faults.join("; ")}` : "");
        model.querySelector(".answer").textContent = `${answer.question}\n\n${answer.text}`;
        paint();
      } catch (error) {
        line.textContent = "";
        throw error;
      } finally {
        model.classList.remove("busy");
      }
    }
    say("");
    await rate();
  } finally {
    byId("find").disabled = false;
  }
}

async function rate() {
  labels();
  paint();
  if (!state.truth.length) { state.ratings.fill(null); paint(); return; }
  for (const [index, answer] of state.answers.entries())
    if (answer) state.ratings[index] = await send("/rate", { image: state.image.image, model: index, truth: state.truth });
  paint();
}

// Pictures

function element(name, properties, ...inside) {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...inside);
  return made;
}

function rectangle([x1, y1, x2, y2], kind, colour, text) {
  const { width, height } = state.image, made = element("div", { className: `box ${kind}` });
  const left = Math.min(x1, x2), top = Math.min(y1, y2);
  made.style.cssText = `left:${100 * left / width}%;top:${100 * top / height}%;width:${100 * Math.abs(x2 - x1) / width}%;`
    + `height:${100 * Math.abs(y2 - y1) / height}%;--colour:${colour}`;
  if (text) made.append(element("span", { textContent: text }));
  return made;
}

function colourOf(index, row, label) {
  const rating = state.ratings[index];
  if (!rating) return PALETTE[Math.max(0, names().indexOf(label)) % PALETTE.length];
  const overlap = rating.overlaps[row];
  return overlap >= 0.75 ? "#2b8a3e" : overlap >= 0.5 ? "#e8590c" : "#e03131";
}

function paint() {
  const least = Number(byId("threshold").value) / 100;
  byId("threshold-value").textContent = `${byId("threshold").value} %`;
  for (const [index, model] of models.entries()) {
    const layer = model.querySelector(".layer");
    if (!layer) continue;
    const rating = state.ratings[index], answer = state.answers[index];
    const truth = state.truth.map((item, row) => rectangle(item.box,
      rating && rating.missed.includes(row) ? "true missed" : "true", "#1971c2", ""));
    const found = (answer ? answer.boxes : []).map((item, row) => item.score < least ? null
      : rectangle(item.box, "found", colourOf(index, row, item.label),
        `${item.label || "(no label)"} ${Math.round(100 * item.score)} %`
        + (rating ? `, overlap ${rating.overlaps[row].toFixed(2)}` : "")));
    layer.replaceChildren(...truth, ...found.filter(Boolean));
    const rewards = rating ? Object.entries(rating.rewards) : [];
    model.querySelector(".reward").replaceChildren(...(rewards.length ? [element("table", {},
      element("caption", { textContent: "Rewards of this answer for the true boxes" }),
      element("tbody", {}, ...rewards.map(([name, value]) => element("tr", { className: name === "total" ? "total" : "" },
        element("th", { scope: "row", textContent: name }), element("td", { textContent: value.toFixed(3) })))))] : []));
  }
  byId("truth").replaceChildren(...state.truth.map((item, row) => {
    const numbers = item.box.map((value, place) => {
      const field = element("input", { type: "number", value: Math.round(value), step: "any" });
      field.setAttribute("aria-label", `${["left", "top", "right", "bottom"][place]} of true box ${row + 1}`);
      field.addEventListener("change", () => trying(() => { item.box[place] = Number(field.value); return rate(); }));
      return field;
    });
    const remove = element("button", { type: "button", textContent: "Remove" });
    remove.addEventListener("click", () => trying(() => { state.truth.splice(row, 1); return rate(); }));
    return element("li", {}, element("span", { textContent: item.label }), ...numbers, remove);
  }));
}

function add(box) {
  const label = byId("label").value || names()[0];
  if (!label) { say("Name first what to find: a true box needs a label.", true); return; }
  state.truth.push({ box, label });
  trying(rate);
}

function drawing(picture) {
  let start = null, sketch = null;
  const place = (event) => {
    const frame = picture.getBoundingClientRect(), { width, height } = state.image;
    const inside = (value, most) => Math.min(Math.max(value, 0), most);
    return [inside((event.clientX - frame.left) / frame.width * width, width),
      inside((event.clientY - frame.top) / frame.height * height, height)];
  };
  picture.onpointerdown = (event) => {
    if (event.button) return;
    start = place(event);
    picture.setPointerCapture(event.pointerId);
  };
  picture.onpointermove = (event) => {
    if (!start) return;
    if (sketch) sketch.remove();
    sketch = rectangle([...start, ...place(event)], "true", "#1971c2", "");
    picture.querySelector(".layer").append(sketch);
  };
  picture.onpointercancel = () => { if (sketch) sketch.remove(); start = sketch = null; };
  picture.onpointerup = (event) => {
    if (!start) return;
    const [[x1, y1], [x2, y2]] = [start, place(event)];
    if (sketch) sketch.remove();
    start = sketch = null;
    // A click, or a slip of the hand, is no box.
    if (Math.abs(x2 - x1) < 2 || Math.abs(y2 - y1) < 2) return;
    add([Math.min(x1, x2), Math.min(y1, y2), Math.max(x1, x2), Math.max(y1, y2)]);
  };
}

// Controls

byId("ask").addEventListener("submit", (event) => { event.preventDefault(); trying(ask); });
byId("file").addEventListener("change", () => { const [file] = byId("file").files; if (file) trying(() => take(file)); });
byId("what").addEventListener("input", labels);
byId("kind").addEventListener("change", labels);
byId("threshold").addEventListener("input", paint);
byId("add").addEventListener("click", () => {
  const { width, height } = state.image;
  add([width / 4, height / 4, 3 * width / 4, 3 * height / 4].map(Math.round));
});
byId("clear").addEventListener("click", () => trying(() => { state.truth = []; return rate(); }));
byId("scene").addEventListener("click", () => trying(async () => {
  const scene = await send("/scene", { number: Math.floor(Math.random() * 10000) });
  byId("kind").value = "";
  byId("what").value = scene.categories.join(", ");
  show(scene, scene.truth);
  await ask();
}));
for (const kind of ["dragenter", "dragover"])
  document.addEventListener(kind, (event) => { event.preventDefault(); byId("drop").classList.add("over"); });
document.addEventListener("dragleave", () => byId("drop").classList.remove("over"));
document.addEventListener("drop", (event) => {
  event.preventDefault();
  byId("drop").classList.remove("over");
  const [file] = event.dataTransfer.files;
  if (file) trying(() => take(file));
});
