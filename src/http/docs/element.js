// What both pages of /docs make their content with: text is only ever text.

export function element(name, text, ...children) {
  const made = document.createElement(name);
  if (text) made.textContent = text;
  made.append(...children);
  return made;
}

/** One that opens: a heading of its parts, and what is inside. */
export function folded(heading, ...inside) {
  const content = element("div", "", ...inside);
  content.className = "body";
  return element("details", "", element("summary", "", ...heading), content);
}

/** A row of cells, each a text or nodes. */
export function row(...cells) {
  return element("tr", "", ...cells.map((cell) => element("td", "", ...[cell].flat())));
}

/** Shows the description at `path` in `main` by `show`, or why it cannot be shown. */
export async function load(path, show) {
  const main = document.querySelector("main");
  try {
    const described = await (await fetch(path)).json();
    document.getElementById("about").textContent = described.info.description;
    main.replaceChildren(...show(described));
  } catch (error) {
    main.textContent = `The description cannot be loaded: ${error}`;
  }
}
