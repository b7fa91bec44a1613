"use strict";
// Everything from the document is set as text, never as HTML.
const make = (name, text, ...children) => {
  const node = document.createElement(name);
  if (text) node.textContent = text;
  node.append(...children);
  return node;
};
let schemas = {};
const resolve = schema => schema.$ref ? schemas[schema.$ref.split("/").pop()] : schema;
function type(schema) {
  if (schema.$ref) return schema.$ref.split("/").pop();
  const several = schema.anyOf || schema.oneOf;
  if (several) return several.map(type).join(" or ");
  if (schema.type === "array") return `list of ${schema.items ? type(schema.items) : "anything"}`;
  if (schema.type === "object" && schema.additionalProperties) return `object of ${type(schema.additionalProperties)}`;
  return schema.const !== undefined ? JSON.stringify(schema.const) : schema.type || "anything";
}
function named(schema, seen) {  // the models that a schema mentions, each once
  if (schema.$ref) {
    const name = schema.$ref.split("/").pop();
    if (!seen.has(name)) { seen.add(name); named(schemas[name], seen); }
  }
  for (const part of [schema.items, schema.additionalProperties, ...(schema.anyOf || []), ...Object.values(schema.properties || {})])
    if (part && typeof part === "object") named(part, seen);
  return seen;
}
function tables(schema) {
  return [...named(schema, new Set())].map(name => {
    const model = schemas[name], table = make("table");
    for (const [field, inner] of Object.entries(model.properties || {})) {
      const needed = (model.required || []).includes(field) ? "" : " (optional)";
      table.append(make("tr", "", make("td", "", make("code", field)), make("td", type(inner) + needed), make("td", inner.description || "")));
    }
    return make("div", "", make("p", "", make("b", name), ": " + (model.description || "")), table);
  });
}
function form(method, path, operation, body) {
  const examples = Object.values(body?.examples || {}), first = examples[0];
  let target = first ? first.summary : path;
  for (const one of operation.parameters || []) target = target.replace(`{${one.name}}`, one.example || "");
  const where = make("input"), answer = make("pre"), send = make("button", "Send");
  where.value = target.replace(/^\//, "");
  const box = make("div", "", make("label", "Path: ", where));
  let text = null;
  if (body) {
    text = make("textarea");
    text.spellcheck = false;
    text.setAttribute("aria-label", "Request body");
    text.value = first ? JSON.stringify(first.value, null, 2) : "{}";
    box.append(text);
  }
  answer.hidden = true;
  answer.setAttribute("aria-live", "polite");
  send.onclick = async () => {
    answer.hidden = false;
    answer.textContent = "…";
    const began = performance.now();
    try {
      const headers = {...withKey(), ...(text ? {"content-type": "application/json"} : {})};
      const response = await fetch(where.value, {method, body: text?.value, headers}), said = await response.text();
      let shown = said;
      try { shown = JSON.stringify(JSON.parse(said), null, 2); } catch { /* it is not JSON: shown as it came */ }
      answer.textContent = `${response.status}, ${(performance.now() - began).toFixed(1)} ms\n${shown}`;
    } catch (error) { answer.textContent = String(error); }
  };
  box.append(make("p", "", send), answer);
  return box;
}
function show(method, path, operation) {
  const body = operation.requestBody?.content["application/json"];
  const answer = operation.responses["200"].content["application/json"].schema;
  const parameters = (operation.parameters || []).filter(one => one.description)
    .map(one => make("p", "", make("code", `?${one.name}=`), " " + one.description));
  return make("details", "",
    make("summary", "", make("code", `${method.toUpperCase()} ${path}`), " " + operation.summary),
    ...parameters, form(method.toUpperCase(), path, operation, body),
    ...(body ? [make("h3", "Request"), ...tables(body.schema)] : []),
    make("h3", "Answer"), make("p", type(answer)), ...tables(answer));
}
let apiKey = "";  // here only: no storage, cookie or address ever has it
const keyForm = document.getElementById("key-form");
const withKey = () => apiKey ? {authorization: `Bearer ${apiKey}`} : {};
async function begin() {
  const intro = document.getElementById("intro"), main = document.getElementById("main");
  try {
    const response = await fetch("openapi.json", {headers: withKey()}), doc = await response.json();
    keyForm.hidden = response.status !== 401;
    if (!response.ok) throw new Error(doc.error);
    schemas = doc.components.schemas;
    intro.textContent = `${doc.info.description} `;
    intro.append(Object.assign(make("a", "openapi.json"), {href: "openapi.json"}));
    for (const tag of doc.tags) {
      main.append(make("h2", tag.name));
      for (const [path, methods] of Object.entries(doc.paths))
        for (const [method, operation] of Object.entries(methods))
          if (operation.tags[0] === tag.name) main.append(show(method, path, operation));
    }
  } catch (error) {
    intro.textContent = `openapi.json cannot be read: ${error.message}`;
  }
}
keyForm.onsubmit = event => {
  event.preventDefault();
  apiKey = document.getElementById("key").value;
  begin();
};
begin();
