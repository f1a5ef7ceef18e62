"use strict";
const $ = (selector) => document.querySelector(selector);
const panels = [...document.querySelectorAll(".answer")];
const times = new Map();  // artifact -> milliseconds of the requests of this page
let current = null, stream = null, round = 0, known = null;
const token = new URLSearchParams(location.hash.slice(1)).get("token");
const headers = token ? { Authorization: `Bearer ${token}` } : {};

function say(text, bad = false) {
  $("#message").textContent = text;
  $("#message").className = bad ? "bad" : "";
}

async function ask(path, options = {}) {
  const response = await fetch(path, { ...options, headers: { ...headers, ...options.headers } });
  const answer = await response.json().catch(() => ({}));
  if (!response.ok) {
    const e = answer.error || { what: `The server answered ${response.status}.` };
    throw new Error([e.what, e.why, e.todo].filter(Boolean).join(" "));
  }
  return answer;
}

async function start() {
  try {
    const about = known = await ask("/v1/models");
    $("#about").textContent = `${about.classes ?? "?"} classes, ${about.models.length} artifact${about.models.length > 1 ? "s" : ""}, vitedge ${about.vitedge}`;
    panels.forEach((panel, index) => {
      const select = panel.querySelector("select");
      if (index) select.add(new Option("nothing", ""));
      for (const m of about.models) select.add(new Option(`${m.name} (${m.size_mib} MiB)`, m.name, false, !index && m.default));
      select.onchange = () => current && classify();
    });
    const other = about.models.find((m) => m.precision === "fp32" && !m.default);
    if (other) panels[1].querySelector("select").value = other.name;
  } catch (error) {
    $("#about").textContent = "";
    say(token ? error.message : `${error.message} Open the page as /#token=TOKEN where a token is asked for.`, true);
  }
}

async function classify() {
  const mine = ++round;
  say("Classifying …");
  const found = [];
  for (const panel of panels) {  // one after the other: two at once would slow each other down
    const name = panel.querySelector("select").value;
    panel.querySelector("ol").replaceChildren();
    panel.querySelector(".time").textContent = "";
    panel.querySelector("figure").hidden = true;
    if (!name) continue;
    const attends = known.models.find((m) => m.name === name).attention;
    try {
      const started = performance.now();
      const answer = await ask(`/v1/predict?artifact=${encodeURIComponent(name)}&attention=${attends}`, {
        method: "POST", body: current, headers: { "Content-Type": current.type.startsWith("image/") ? current.type : "image/jpeg" } });
      if (mine !== round) return;
      show(panel, name, answer, performance.now() - started);
      if (answer.images[0].attention) await showMap(panel, answer.images[0].attention);
      if (answer.images[0].top) found.push([panel, answer.images[0].top]);
      say("");
    } catch (error) {
      if (mine === round) say(error.message, true);
      return;
    }
  }
  compare(found);
}

function show(panel, name, answer, ms) {
  const list = panel.querySelector("ol");
  if (answer.images[0].embedding) {
    const item = document.createElement("li");
    item.textContent = `An embedding of ${answer.images[0].embedding.length} numbers; --text-embeddings gives it classes.`;
    list.append(item);
  }
  for (const entry of answer.images[0].top ?? []) {
    const item = document.createElement("li");
    const line = document.createElement("span");
    const label = document.createElement("b");
    label.textContent = entry.class ?? `class ${entry.index}`;
    const share = document.createElement("span");
    share.textContent = `${(100 * entry.probability).toFixed(1)} %`;
    line.append(label, share);
    const bar = document.createElement("div");
    bar.className = "bar";
    const ns = "http://www.w3.org/2000/svg";  // widths as attributes: the page's policy allows no inline styles
    const svg = document.createElementNS(ns, "svg"), rect = document.createElementNS(ns, "rect");
    rect.setAttribute("width", `${100 * entry.probability}%`);
    rect.setAttribute("height", "100%");
    svg.append(rect);
    bar.append(svg);
    item.append(line, bar);
    list.append(item);
  }
  const all = times.get(name) ?? [];
  const inference = answer.images[0].inference_ms;
  all.push(inference);
  times.set(name, all);
  const sorted = [...all].sort((a, b) => a - b);
  const at = (q) => sorted[Math.min(sorted.length - 1, Math.floor(q * sorted.length))].toFixed(1);
  const many = sorted.length > 1 ? `; ${sorted.length} images: p50 ${at(0.5)}, p90 ${at(0.9)} ms` : "";
  panel.querySelector(".time").textContent =
    answer.device === "simulator" ? "simulator: no latency" : `${inference.toFixed(1)} ms inference on ${answer.device}, ${ms.toFixed(0)} ms in all${many}`;
}

// The colours of the report: dark violet over red and orange to light yellow, evenly brighter.
const COLOURS = [[0, 0, 20], [80, 18, 123], [183, 55, 84], [249, 142, 9], [252, 255, 164]];

async function showMap(panel, { rows, columns, values }) {
  const { resize, crop, squash, upright } = known.preprocess;
  const bitmap = await createImageBitmap(current, { imageOrientation: upright ? "from-image" : "none" });
  // What the model saw: the crop, in pixels of the image as it came.
  const pair = (side) => (Array.isArray(side) ? side : [side, side]);
  const [[resizedHigh, resizedWide], [high, wide]] = [pair(resize), pair(crop)];
  const [scaleX, scaleY] = [bitmap.width / resizedWide, bitmap.height / resizedHigh];
  const [x, y] = squash ? [scaleX, scaleY] : [Math.min(scaleX, scaleY), Math.min(scaleX, scaleY)];
  const canvas = panel.querySelector("canvas"), pen = canvas.getContext("2d", { willReadFrequently: true });
  canvas.width = 448;
  canvas.height = Math.round((448 * high) / wide);
  pen.drawImage(bitmap, (bitmap.width - wide * x) / 2, (bitmap.height - high * y) / 2, wide * x, high * y, 0, 0, canvas.width, canvas.height);
  const image = pen.getImageData(0, 0, canvas.width, canvas.height), heat = new ImageData(columns, rows);
  const sorted = [...values].sort((a, b) => a - b), low = sorted[0], top = sorted[Math.floor(0.99 * (sorted.length - 1))];
  values.forEach((value, k) => {
    const at = Math.min(1, Math.max(0, (value - low) / Math.max(top - low, 1e-12))) * (COLOURS.length - 1);
    const from = Math.min(Math.floor(at), COLOURS.length - 2);
    COLOURS[from].forEach((colour, c) => { heat.data[4 * k + c] = colour + (at - from) * (COLOURS[from + 1][c] - colour); });
    heat.data[4 * k + 3] = 255;
  });
  const small = document.createElement("canvas");
  small.width = columns;
  small.height = rows;
  small.getContext("2d").putImageData(heat, 0, 0);
  pen.imageSmoothingQuality = "high";
  pen.drawImage(small, 0, 0, canvas.width, canvas.height);
  const colours = pen.getImageData(0, 0, canvas.width, canvas.height);
  for (let k = 0; k < colours.data.length; k += 4) {
    const grey = (image.data[k] + image.data[k + 1] + image.data[k + 2]) / 3;
    for (let c = 0; c < 3; c += 1) colours.data[k + c] = 0.35 * grey + 0.65 * colours.data[k + c];
  }
  pen.putImageData(colours, 0, 0);
  panel.querySelector("figure").hidden = false;
}

function compare(found) {
  if (found.length < 2) { $("#differ").textContent = ""; return; }
  const [one, two] = found.map(([, top]) => top[0]);
  const same = one.index === two.index;
  $("#differ").textContent = same
    ? `Both say the same; the probability differs by ${(100 * Math.abs(one.probability - two.probability)).toFixed(1)} points.`
    : "They disagree.";
  for (const [panel, top] of found) {
    const others = found.find(([p]) => p !== panel)[1].map((e) => e.index);
    panel.querySelectorAll("li").forEach((item, k) => item.classList.toggle("differs", others[k] !== top[k].index));
  }
}

function take(blob) {
  if (!blob) return;
  stopCamera();
  current = blob;
  const image = $("#image");
  if (image.src) URL.revokeObjectURL(image.src);
  image.src = URL.createObjectURL(blob);
  image.hidden = false;
  $("#drop p").hidden = true;
  classify();
}

function stopCamera() {
  if (stream) for (const track of stream.getTracks()) track.stop();
  stream = null;
  $("#video").hidden = $("#shoot").hidden = true;
}

$("#camera").onclick = async () => {
  if (stream) { stopCamera(); return; }
  if (!navigator.mediaDevices) { say("The browser gives the camera to https or localhost only.", true); return; }
  try {
    stream = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment" } });
    const video = $("#video");
    video.srcObject = stream;
    await video.play();
    video.hidden = $("#shoot").hidden = false;
    $("#image").hidden = true;
    $("#drop p").hidden = true;
    say("");
  } catch (error) {
    stopCamera();
    say(error.name === "NotAllowedError" ? "The camera was not allowed. Choose a file instead." : `There is no camera to use: ${error.message}`, true);
  }
};
$("#shoot").onclick = () => {
  const video = $("#video"), canvas = document.createElement("canvas");
  canvas.width = video.videoWidth;
  canvas.height = video.videoHeight;
  canvas.getContext("2d").drawImage(video, 0, 0);
  canvas.toBlob(take, "image/jpeg", 0.95);
};
$("#choose").onclick = () => $("#file").click();
$("#drop").onclick = () => stream || $("#file").click();
$("#drop").onkeydown = (event) => { if (event.key === "Enter" || event.key === " ") { event.preventDefault(); $("#file").click(); } };
$("#file").onchange = (event) => { take(event.target.files[0]); event.target.value = ""; };
for (const name of ["dragenter", "dragover"]) document.addEventListener(name, (event) => { event.preventDefault(); $("#drop").classList.add("over"); });
for (const name of ["dragleave", "drop"]) document.addEventListener(name, (event) => { event.preventDefault(); $("#drop").classList.remove("over"); });
document.addEventListener("drop", (event) => take([...event.dataTransfer.files].find((file) => file.type.startsWith("image/"))));
document.addEventListener("paste", (event) => take([...event.clipboardData.files].find((file) => file.type.startsWith("image/"))));
start();
