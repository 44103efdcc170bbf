"use strict";
const content = JSON.parse(document.getElementById("content").textContent);

function add(parent, tag, text = "", attributes = {}) {
  const element = parent.appendChild(document.createElement(tag));
  element.textContent = text;
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  return element;
}

// Adds a bar for each probability.
function addBars(list, probabilities) {
  for (const [label, value] of probabilities) {
    add(list, "dt", label);
    add(add(list, "dd", "", { class: "bar" }), "i").style.width = 100 * value + "%";
    add(list, "dd", (100 * value).toFixed(1) + " %");
  }
}

// Adds both attention maps of a pair. The element `pointed` describes the cell under the pointer.
function addMaps(parent, pair, pointed) {
  const unknown = new Set(pair.unknown);

  function heading(row, word, scope) {
    return add(row, "th", word, { scope, ...(unknown.has(word) ? { class: "unknown", title: "not in the model's vocabulary" } : {}) });
  }

  function addMap(title, rule, weights, describe) {
    const section = add(parent, "section");
    add(add(section, "h2", title + " "), "span", rule);
    const table = add(section, "table", "", { class: "map" });
    const top = add(table, "tr");
    add(top, "td", "", { class: "corner" });
    const columns = pair.hypothesis.map(word => heading(top, word, "col"));
    const few = pair.premise.length * pair.hypothesis.length <= 240;
    weights.forEach((row, i) => {
      const line = add(table, "tr");
      const name = heading(line, pair.premise[i], "row");
      row.forEach((weight, j) => {
        const text = few && weight >= 0.005 ? weight.toFixed(2).replace(/^0/, "") : "";
        const cell = add(line, "td", text, { tabindex: -1, "aria-label": describe(i, j, weight) });
        cell.style.setProperty("--w", weight);
        cell.classList.toggle("strong", weight > 0.55);
        const point = () => {
          parent.querySelectorAll(".pointed").forEach(th => th.classList.remove("pointed"));
          name.classList.add("pointed");
          columns[j].classList.add("pointed");
          pointed.textContent = describe(i, j, weight);
        };
        cell.addEventListener("pointerenter", point);
        cell.addEventListener("focus", point);
      });
    });
  }

  const words = (i, j) => [`“${pair.premise[i]}”`, `“${pair.hypothesis[j]}”`];
  addMap("Premise to hypothesis", "rows sum to 1", pair.alpha,
    (i, j, w) => `${words(i, j).join(" attends to ")}: ${w.toFixed(3)}`);
  addMap("Hypothesis to premise", "columns sum to 1", pair.beta,
    (i, j, w) => `${words(i, j).reverse().join(" attends to ")}: ${w.toFixed(3)}`);
}
