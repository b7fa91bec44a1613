// The page of OneTrunk's front. Everything that comes from the server or from the user is set as text, never as markup.
"use strict";

const EXAMPLES = [
  ["a film review", "A gripping, beautifully acted film that stays with you for days.", ""],
  ["a request", "play the newest album of nina simone", ""],
  ["two sentences", "A man is playing a flute on the stage.", "A woman is slicing a tomato."],
];
const MOST_BARS = 8;
const COLOURS = 6;
const SVG = "http://www.w3.org/2000/svg";

const byId = (id) => document.getElementById(id);

/** An element with attributes and children; a child that is no node becomes text. */
function make(name, attributes = {}, ...children) {
  const node = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  node.append(...children.map((child) => (child instanceof Node ? child : String(child))));
  return node;
}

function draw(name, attributes = {}, text = null) {
  const node = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  if (text !== null) node.textContent = text;
  return node;
}

/** A table; cells that are numbers, or "–" in a column of numbers, stand to the right. */
function table(caption, heads, rows, numbers = []) {
  const side = (at) => (numbers.includes(at) ? { class: "number" } : {});
  return make(
    "table", { class: "table" },
    make("caption", {}, caption),
    make("thead", {}, make("tr", {}, ...heads.map((head, at) => make("th", { scope: "col", ...side(at) }, head)))),
    make("tbody", {}, ...rows.map((row) => make("tr", {}, ...row.map((cell, at) => make("td", side(at), cell))))),
  );
}

let apiKey = ""; // here only: no storage, cookie or address ever has it

/** The JSON at a path. Raises the server's own message if it is an error, and asks for a key if one is missing. */
async function fetchJson(path, body = null) {
  const headers = apiKey ? { Authorization: `Bearer ${apiKey}` } : {};
  const asked = body === null ? { headers } : {
    method: "POST", headers: { ...headers, "Content-Type": "application/json" }, body: JSON.stringify(body),
  };
  const response = await fetch(path, asked);
  const found = await response.json().catch(() => ({}));
  if (response.status === 401 && byId("key-form").hidden) {
    byId("key-form").hidden = false;
    byId("key").focus();
  }
  if (!response.ok) throw new Error(found.error ?? `${path}: HTTP status ${response.status}`);
  return found;
}

// ---- Answers -------------------------------------------------------------------------------------------------------

const percent = (score) => `${(100 * score).toFixed(1)}%`;

function bar(share) {
  const node = make("div", { class: "bar", "aria-hidden": "true" });
  node.style.width = `${Math.max(0, Math.min(1, share)) * 100}%`;
  return node;
}

function bars(scores, holds) {
  const entries = Object.entries(scores);
  const rows = entries.slice(0, MOST_BARS).map(([label, score]) => make(
    "tr", holds.includes(label) ? { class: "holds" } : {},
    make("th", { scope: "row", title: label }, label), make("td", {}, bar(score)), make("td", { class: "number" }, percent(score)),
  ));
  const more = entries.length - rows.length;
  const nodes = [make("table", { class: "bars" }, make("tbody", {}, ...rows))];
  if (more > 0) nodes.push(make("p", { class: "quiet" }, `and ${more} less likely labels`));
  return nodes;
}

/** The text with its spans in colour. Offsets count characters, of which JavaScript's strings may need two units. */
function marked(text, spans) {
  const characters = Array.from(text);
  const types = [...new Set(spans.map((span) => span.type))];
  const node = make("p", { class: "text" });
  let at = 0;
  for (const span of [...spans].sort((one, other) => one.start - other.start)) {
    if (span.start < at) continue; // lies within the span before
    const colour = `mark-${(types.indexOf(span.type) % COLOURS) + 1}`;
    node.append(characters.slice(at, span.start).join(""));
    node.append(make("mark", { class: colour, title: percent(span.score) },
      characters.slice(span.start, span.end).join(""), make("small", {}, span.type)));
    at = span.end;
  }
  node.append(characters.slice(at).join(""));
  return node;
}

function card(name, said, task, text) {
  const heading = make("h3", {}, name, make("span", {}, task ? `${task.kind}, version ${task.version}` : ""));
  const node = make("article", { class: "card", "data-task": name }, heading);
  const says = (what) => node.append(make("p", { class: "says" }, what));
  if (said.spans) {
    node.classList.add("wide");
    says(said.spans.length ? `${said.spans.length} ${said.spans.length === 1 ? "span" : "spans"}` : "no spans");
    node.append(marked(text, said.spans));
  } else if (said.labels) {
    says(said.labels.length ? said.labels.join(", ") : "none of these");
    node.append(...bars(said.scores, said.labels));
  } else if (said.scores) {
    says(said.none_of_these ? "none of these" : said.label);
    node.append(...bars(said.scores, said.none_of_these ? [] : [said.label]));
  } else if (said.embedding) {
    const first = said.embedding.slice(0, 3).map((number) => number.toFixed(3)).join(", ");
    says(`[${first}, …]`);
    node.append(make("p", { class: "quiet" }, `${said.embedding.length} numbers, of length 1`));
  } else {
    says(Number(said.score.toPrecision(4)));
    if (task?.range) {
      const [low, high] = task.range;
      node.append(bar((said.score - low) / (high - low)), make("p", { class: "quiet" }, `from ${low} to ${high}`));
    }
  }
  return node;
}

function showAnswers(answer, tasks) {
  const cards = Object.entries(answer.predictions).map(([name, said]) => card(name, said, tasks[name], answer.text));
  const wide = cards.filter((node) => node.classList.contains("wide"));
  const nodes = [...cards.filter((node) => !wide.includes(node)), ...wide];
  if (answer.truncated) {
    nodes.unshift(make("p", { class: "card wide warning" }, "The text is too long: its end was not read."));
  }
  byId("answers").replaceChildren(...nodes);
}

// ---- What ran ------------------------------------------------------------------------------------------------------

/** The parts of the ensemble: segments of the trunk and limbs in order, and the model that answers each task. */
function readParts(config) {
  const parts = { segments: [], models: {} };
  for (const step of config.ensemble_scheduling?.step ?? []) {
    const [, , limb = "", start, stop] = /^(trunk|limb_(\w+_[0-9a-f]{12}))_(\d+)_(\d+)$/.exec(step.model_name) ?? [];
    if (stop) parts.segments.push({ model: step.model_name, limb, start: Number(start), stop: Number(stop) });
    else for (const output of Object.values(step.output_map)) parts.models[output] = step.model_name;
  }
  // A group of heads may hold their limb. It then reads the state below that, and its model stands for the limb.
  for (const step of config.ensemble_scheduling?.step ?? []) {
    const [, limb, stop] = /^heads_(\w+_[0-9a-f]{12})_(\d+)$/.exec(step.model_name) ?? [];
    const below = Object.keys(step.input_map ?? {}).map((name) => /^hidden_(\d+)$/.exec(name)?.[1]).find(Boolean);
    if (limb && below && !parts.segments.some((segment) => segment.limb === limb)) {
      parts.segments.push({ model: step.model_name, limb, start: Number(below), stop: Number(stop) });
    }
  }
  parts.segments.sort((one, other) => one.start - other.start || one.stop - other.stop);
  return parts;
}

/** Where a head stands: the label of its limb, if it has one, and the tap of the trunk below both. */
function place(task) {
  const [, name, tap, digest] = /^(\w+)-(\d+)\+\d+@(\w+)$/.exec(task.limb ?? "") ?? [];
  return { limb: name ? `${name}_${digest}` : "", tap: name ? Number(tap) : task.tap };
}

/** Whether a task needs a segment: its own limb, or layers of the trunk below its tap; of two from the start, one. */
function needs(task, { limb, stop }) {
  const stands = place(task);
  if (limb) return stands.limb === limb;
  return stop === 0 ? stands.tap === 0 : stop <= stands.tap;
}

function segmentTitle({ limb, start, stop }) {
  if (limb) return `limb ${limb.slice(0, limb.lastIndexOf("_"))}`;
  return stop === start ? "embeddings" : stop === start + 1 ? `layer ${stop}` : `layers ${start + 1} to ${stop}`;
}

const milliseconds = (time) => (time ? `${(time.queue + time.compute).toFixed(2)} ms` : "");

/** The parts as a picture: tokenizer and segments in a row, the heads below the segment that ends at their tap. */
function picture(parts, tasks, asked, times) {
  const columns = [
    { title: "tokenizer", model: "tokenizer", layers: 0, ran: asked.length > 0, heads: [] },
    ...parts.segments.map((segment) => ({
      title: segmentTitle(segment), model: segment.model, layers: segment.stop - segment.start,
      ran: asked.some((name) => tasks[name] && needs(tasks[name], segment)),
      heads: Object.values(tasks).filter((task) => task.tap === segment.stop && place(task).limb === segment.limb),
    })),
  ];
  const wide = 186, gap = 22, high = 46, headHigh = 34, top = 8;
  const most = Math.max(0, ...columns.map((column) => column.heads.length));
  const size = [columns.length * (wide + gap), top + high + 24 + most * (headHigh + 6)];
  const ran = columns.filter((column) => column.ran).map((column) => column.title);
  const said = asked.length ? `Ran: ${[...ran, ...asked.map((name) => `head ${name}`)].join(", ")}.` : "Nothing ran yet.";
  const svg = draw("svg", { width: size[0], height: size[1], viewBox: `0 0 ${size.join(" ")}`, role: "img" });
  svg.append(draw("title", {}, said));
  columns.forEach((column, at) => {
    const x = 2 + at * (wide + gap);
    if (at) svg.append(arrow(`M${x - gap} ${top + high / 2} H${x}`, column.ran));
    svg.append(box(x, top, wide, high, column.ran, column.title, column.layers, milliseconds(times[column.model])));
    column.heads.forEach((task, row) => {
      const y = top + high + 24 + row * (headHigh + 6), active = asked.includes(task.name);
      svg.append(arrow(`M${x + 8} ${top + high} V${y + headHigh / 2} H${x + 18}`, active));
      const model = parts.models[task.name];
      const alone = Object.values(parts.models).filter((other) => other === model).length === 1;
      const time = active && alone ? milliseconds(times[model]) : "";
      svg.append(box(x + 18, y, wide - 18, headHigh, active, task.name, task.layers, time));
    });
  });
  return svg;
}

const arrow = (path, ran) => draw("path", { d: path, class: ran ? "arrow ran" : "arrow" });

function box(x, y, wide, high, ran, title, layers, time) {
  const group = draw("g", ran ? { class: "ran" } : {});
  group.append(draw("rect", { x, y, width: wide, height: high, rx: 5, class: "box" }));
  group.append(draw("text", { x: x + 8, y: y + 15 }, title.length > 16 ? `${title.slice(0, 15)}…` : title));
  group.append(draw("text", { x: x + wide - 8, y: y + 15, "text-anchor": "end", class: "small" }, time));
  for (let layer = 0; layer < Math.min(layers, 12); layer++) {
    group.append(draw("rect", { x: x + 8 + layer * 13, y: y + high - 13, width: 10, height: 7, class: "layer" }));
  }
  group.append(draw("title", {}, `${title}${layers ? `, ${layers} ${layers === 1 ? "layer" : "layers"}` : ""}`));
  return group;
}

/** Model -> mean milliseconds in the queue and at work, of what Triton ran between two readings of its statistics. */
function meanTimes(before, after) {
  const old = Object.fromEntries(before.model_stats.map((model) => [`${model.name} ${model.version}`, model]));
  const times = {};
  for (const model of after.model_stats) {
    const earlier = old[`${model.name} ${model.version}`]?.inference_stats;
    const grown = (part, what) => Number(model.inference_stats[part]?.[what] ?? 0) - Number(earlier?.[part]?.[what] ?? 0);
    const count = grown("success", "count");
    if (count <= 0) continue;
    const compute = ["compute_input", "compute_infer", "compute_output"].map((part) => grown(part, "ns"));
    times[model.name] = {
      count, queue: grown("queue", "ns") / count / 1e6, compute: compute.reduce((sum, ns) => sum + ns, 0) / count / 1e6,
    };
  }
  return times;
}

function showTimes(parts, times, totalMs, frontMs) {
  const whole = [
    ["this page, network included", "", "", totalMs.toFixed(2)],
    ["front and Triton", "", "", frontMs.toFixed(2)],
  ];
  const inOrder = new Set(["tokenizer", ...parts.segments.map(({ model }) => model), ...Object.values(parts.models)]);
  const rows = [...inOrder].filter((name) => times[name]).map((name) => [
    name, String(times[name].count), times[name].queue.toFixed(2), times[name].compute.toFixed(2),
  ]);
  const caption = "Milliseconds by part: the mean of what Triton ran meanwhile, other people's requests included. "
    + "Heads run beside each other.";
  byId("times").replaceChildren(table(caption, ["part", "runs", "waited", "worked"], [...whole, ...rows], [1, 2, 3]));
}

// ---- The server ----------------------------------------------------------------------------------------------------

function showVersions(found, server) {
  byId("about").textContent = `Trunk ${found.trunk}, at most ${found.max_length} tokens; ${server.name} ${server.version}.`;
  const rows = Object.values(found.tasks).map((task) => [
    task.name, String(task.version), task.kind, task.form === "pair" ? "two texts" : "one text",
    task.limb ? `limb ${task.limb}` : `after layer ${task.tap}`, String(task.layers), task.labels ? String(task.labels.length) : "–",
  ]);
  const heads = ["task", "version", "kind", "reads", "tap", "own layers", "labels"];
  byId("versions").replaceChildren(table("The heads that are served now.", heads, rows, [1, 5, 6]));
}

function showChoices(tasks) {
  const chosen = chosenTasks();
  byId("choices").replaceChildren(...Object.values(tasks).map((task) => {
    const input = make("input", { type: "checkbox", name: "task", value: task.name });
    input.checked = chosen.includes(task.name);
    return make("label", {}, input, ` ${task.name}`, make("span", { class: "quiet" }, task.form === "pair" ? " (two texts)" : ""));
  }));
}

const chosenTasks = () => [...document.querySelectorAll("#choices input:checked")].map((input) => input.value);

function showDeployments(found) {
  const place = byId("deployments");
  if (!found?.length) {
    const said = found ? "Nothing was deployed since this repository was built." : "The front was started without --repository, and does not know.";
    place.replaceChildren(make("p", { class: "quiet" }, said));
    return;
  }
  const rows = found.map((one) => [
    one.time ?? "", one.action ?? "", one.task ?? "", `${one.from ?? "–"} → ${one.to ?? "–"}`, one.result ?? "",
  ]);
  place.replaceChildren(table("The newest first.", ["time", "what", "task", "version", "result"], rows));
}

async function loadServer() {
  const [found, config, server, log] = await Promise.all([
    fetchJson("v1/tasks"), fetchJson("v2/models/multitask/config"), fetchJson("v2"), fetchJson("v1/deployments"),
  ]);
  showVersions(found, server);
  showChoices(found.tasks);
  showDeployments(log.deployments);
  return { tasks: found.tasks, parts: readParts(config) };
}

/** Show what the server has, as soon as it may be asked. */
async function begin() {
  try {
    const { tasks, parts } = await loadServer();
    byId("picture").replaceChildren(picture(parts, tasks, [], {}));
    byId("key-form").hidden = true;
    byId("key").value = "";
    say("");
  } catch (error) {
    say(error.message, true);
  }
}

function say(text, isError = false) {
  byId("status").textContent = text;
  byId("status").classList.toggle("error", isError);
}

async function ask() {
  const text = byId("text").value, pair = byId("pair").value, tasks = chosenTasks();
  if (!text.trim()) {
    say("Type a text first.", true);
    byId("text").focus();
    return;
  }
  byId("ask").disabled = true;
  try {
    const question = { texts: [text], ...(pair.trim() ? { pairs: [pair] } : {}), ...(tasks.length ? { tasks } : {}) };
    const [server, before] = await Promise.all([loadServer(), fetchJson("v2/models/stats")]);
    const began = performance.now();
    const [answer] = (await fetchJson("v1/predict", question)).answers;
    const totalMs = performance.now() - began;
    const times = meanTimes(before, await fetchJson("v2/models/stats"));
    const asked = Object.keys(answer.predictions);
    showAnswers(answer, server.tasks);
    byId("picture").replaceChildren(picture(server.parts, server.tasks, asked, times));
    showTimes(server.parts, times, totalMs, answer.ms);
    say(`${asked.length} ${asked.length === 1 ? "task" : "tasks"} answered in ${totalMs.toFixed(1)} ms.`);
  } catch (error) {
    say(error.message, true);
  } finally {
    byId("ask").disabled = false;
  }
}

byId("form").addEventListener("submit", (event) => {
  event.preventDefault();
  ask();
});
for (const id of ["text", "pair"]) {
  byId(id).addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
      event.preventDefault();
      byId("form").requestSubmit();
    }
  });
}
for (const [name, text, pair] of EXAMPLES) {
  const button = make("button", { type: "button" }, name);
  button.addEventListener("click", () => {
    byId("text").value = text;
    byId("pair").value = pair;
    byId("form").requestSubmit();
  });
  byId("examples").append(button, " ");
}
byId("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  apiKey = byId("key").value;
  begin();
});
begin();
