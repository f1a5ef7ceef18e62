"use strict";
const $ = (selector) => document.querySelector(selector);
const panels = [...document.querySelectorAll(".answer")];
const times = new Map();  // artifact -> milliseconds of the requests of this page
let current = null, stream = null, round = 0;
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
    const about = await ask("/v1/models");
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
    if (!name) continue;
    try {
      const started = performance.now();
      const answer = await ask(`/v1/predict?artifact=${encodeURIComponent(name)}`, {
        method: "POST", body: current, headers: { "Content-Type": current.type.startsWith("image/") ? current.type : "image/jpeg" } });
      if (mine !== round) return;
      show(panel, name, answer, performance.now() - started);
      found.push([panel, answer.images[0].top]);
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
  for (const entry of answer.images[0].top) {
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
