"use strict";
// The number that a cell begins with, in the smallest unit of its kind; text stays text.
const scales = { KiB: 2 ** 10, MiB: 2 ** 20, GiB: 2 ** 30, TiB: 2 ** 40, s: 1e3 };
function value(cell) {
  const text = cell.textContent.trim();
  const found = /^(-?\d+(?:\.\d+)?)(?:\s+([A-Za-z]+)\b)?/.exec(text);
  return found ? Number(found[1]) * (scales[found[2]] ?? 1) : text;
}
function compare(a, b) {
  if (typeof a === typeof b) return typeof a === "number" ? a - b : a.localeCompare(b);
  return typeof a === "number" ? -1 : 1;
}
for (const table of document.querySelectorAll("table")) {
  const heads = [...table.querySelectorAll("th")];
  heads.forEach((head, column) => head.firstElementChild.addEventListener("click", () => {
    const down = head.getAttribute("aria-sort") === "ascending";
    heads.forEach((other) => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
    const rows = [...table.tBodies[0].rows];
    rows.sort((a, b) => compare(value(a.cells[column]), value(b.cells[column])) * (down ? -1 : 1));
    table.tBodies[0].append(...rows);
  }));
}
function save(name, type, text) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], { type }));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}
for (const figure of document.querySelectorAll("figure")) {
  const name = figure.dataset.name;
  figure.querySelector("[data-save=svg]").addEventListener("click", () =>
    save(`${name}.svg`, "image/svg+xml", new XMLSerializer().serializeToString(figure.querySelector("svg"))));
  figure.querySelector("[data-save=csv]").addEventListener("click", () =>
    save(`${name}.csv`, "text/csv", figure.querySelector("pre").textContent));
}
document.documentElement.dataset.ready = "true";
