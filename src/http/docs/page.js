// Shows the REST description and lets the reader try each call against this very server.
import { element, folded, load, row } from "/docs/element.js";

const token = document.getElementById("token");

function field(name, hint, value, multiline) {
  const input = document.createElement(multiline ? "textarea" : "input");
  if (multiline) input.rows = 4;
  input.value = value || "";
  if (hint) input.placeholder = hint;
  return { input, label: element("label", name + " ", input) };
}

// A body to start from: each required field with an empty value of its type.
function sample(schema) {
  if (!schema || !schema.properties) return "{}";
  const of = { string: "", integer: 0, object: {}, array: [], boolean: false };
  const names = schema.required && schema.required.length ? schema.required : Object.keys(schema.properties);
  return JSON.stringify(Object.fromEntries(names.map((name) => [name, of[schema.properties[name].type] ?? null])), null, 1);
}

function operation(path, method, described) {
  const inputs = (described.parameters || []).map((parameter) => ({
    parameter,
    ...field(parameter.name, parameter.description || parameter.in, ""),
  }));
  const schema = described.requestBody?.content["application/json"]?.schema;
  const body = described.requestBody ? field("Body", "", sample(schema), true) : null;
  const output = element("pre");
  output.hidden = true;
  const button = element("button", "Send");
  button.type = "button";
  button.addEventListener("click", async () => {
    output.hidden = false;
    output.textContent = "…";
    output.textContent = await send(path, method, inputs, body).catch((error) => String(error));
  });
  const rows = Object.entries(described.responses).map(([status, response]) => row(status, response.description));
  const text = described.description ? [element("p", described.description)] : [];
  const fields = [...inputs, ...(body ? [body] : [])].map((input) => input.label);
  const answers = element("table", "", element("tbody", "", ...rows));
  const heading = [element("code", method.toUpperCase()), element("code", path), element("span", described.summary)];
  return folded(heading, ...text, ...fields, button, output, answers);
}

async function send(path, method, inputs, body) {
  const headers = {};
  const query = new URLSearchParams();
  let url = path;
  for (const { parameter, input } of inputs) {
    if (!input.value) continue;
    if (parameter.in === "path") url = url.replace(`{${parameter.name}}`, encodeURIComponent(input.value));
    else if (parameter.in === "query") query.set(parameter.name, input.value);
    else headers[parameter.name] = input.value;
  }
  if (token.value) headers.Authorization = `Bearer ${token.value}`;
  if (body) headers["Content-Type"] = "application/json";
  const asked = query.size ? `${url}?${query}` : url;
  const answer = await fetch(asked, { method: method.toUpperCase(), headers, body: body?.input.value });
  const text = await answer.text();
  let shown = text;
  try {
    const json = JSON.parse(text);
    if (json.token) token.value = json.token;
    shown = JSON.stringify(json, null, 2);
  } catch {
    // Not every answer is JSON.
  }
  const etag = answer.headers.get("ETag");
  return `${answer.status} ${answer.statusText}${etag ? `\nETag: ${etag}` : ""}\n\n${shown}`;
}

function show(described) {
  const calls = Object.entries(described.paths).flatMap(([path, methods]) =>
    Object.entries(methods).map(([method, call]) => ({ path, method, call })),
  );
  return described.tags.flatMap((tag) => [
    element("h2", tag.name),
    ...calls
      .filter(({ call }) => call.tags.includes(tag.name))
      .map(({ path, method, call }) => operation(path, method, call)),
  ]);
}

load("/api/openapi.json", show);
