// Shows the AsyncAPI description of the Socket.IO events: what a client sends and is answered, what the server sends,
// and the shapes that several of them share.
import { element, folded, load, row } from "/docs/element.js";

/** What a schema allows, in words; a shape with a name leads to it. */
function kind(schema) {
  if (schema.$ref) {
    const name = schema.$ref.split("/").pop();
    const link = element("a", name);
    link.href = `#${name}`;
    return [link];
  }
  if (schema.const !== undefined) return [JSON.stringify(schema.const)];
  if (schema.enum) return [schema.enum.map((value) => JSON.stringify(value)).join(", ")];
  if (schema.type === "array") return ["array of ", ...kind(schema.items ?? {})];
  const several = schema.oneOf ?? schema.anyOf;
  if (several && !schema.properties) {
    return several.flatMap((one, at) => [...(at > 0 ? [" or "] : []), ...kind(one)]);
  }
  if (schema.additionalProperties?.type) return ["object of ", ...kind(schema.additionalProperties)];
  return [[schema.type ?? "any JSON"].flat().join(" or ") + (schema.format ? ` (${schema.format})` : "")];
}

/** What else holds: the description, and the bounds that the type does not say. */
function about(schema) {
  const bounds = {
    "at least": schema.minimum ?? schema.minItems,
    "at most": schema.maximum ?? schema.maxItems ?? schema.maxLength,
    default: schema.default,
  };
  const said = Object.entries(bounds).filter(([, value]) => value !== undefined);
  return [schema.description ?? "", said.map(([word, value]) => `${word} ${value}`).join(", ")].filter(Boolean).join(" ");
}

/** The fields of a shape, or what it is made of. */
function shape(schema) {
  if (schema.allOf) return schema.allOf.flatMap(shape);
  if (!schema.properties) {
    // Alternatives without names are shown one after the other.
    if (schema.oneOf?.some((one) => one.properties)) {
      return schema.oneOf.flatMap((one, at) => [...(at > 0 ? [element("p", "or")] : []), ...shape(one)]);
    }
    return [element("p", "", ...kind(schema))];
  }
  const required = schema.required ?? [];
  const rows = Object.entries(schema.properties).map(([name, field]) =>
    row(element("code", name), [...kind(field), required.includes(name) ? "" : ", optional"], about(field)),
  );
  const shown = [element("table", "", element("tbody", "", ...rows))];
  const choice = (schema.oneOf ?? []).flatMap((one) => one.required ?? []);
  if (choice.length > 0) shown.push(element("p", `Exactly one of ${choice.join(", ")}.`));
  return shown;
}

function show(described) {
  const { messages, schemas } = described.components;
  const messageOf = ({ $ref }) => messages[$ref.split("/").pop()];
  const events = (action) =>
    Object.values(described.operations)
      .filter((operation) => operation.action === action)
      .map((operation) => {
        const message = messageOf(operation.messages[0]);
        const answers = (operation.reply?.messages ?? []).map(messageOf);
        const heading = [element("code", message.name), element("span", operation.summary)];
        const acks = answers.flatMap((answer) => [element("h3", "Acknowledged with"), ...shape(answer.payload)]);
        return folded(heading, ...shape(message.payload), ...acks);
      });
  const named = Object.entries(schemas).map(([name, schema]) => {
    const text = schema.description ? [element("p", schema.description)] : [];
    const section = element("section", "", element("h3", name), ...text, ...shape(schema));
    section.id = name;
    return section;
  });
  return [
    // The server receives what a client sends.
    element("h2", "A client sends"),
    ...events("receive"),
    element("h2", "The server sends"),
    ...events("send"),
    element("h2", "Shapes"),
    ...named,
  ];
}

load("/api/asyncapi.json", show);
