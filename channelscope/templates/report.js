"use strict";
// Everything is there without this script: it sorts tables, closes an enlarged figure at Escape, unfolds for printing.
function sortValue(row, column) {
  const cell = row.cells[column];
  const text = cell.dataset.value ?? cell.textContent.trim();
  return { text, number: text === "" ? NaN : Number(text), missing: cell.dataset.value === "" };
}
function sortBy(table, head, column) {
  const falling = head.getAttribute("aria-sort") === "ascending";
  for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", falling ? "descending" : "ascending");
  const rows = [...table.tBodies[0].rows].map((row) => [sortValue(row, column), row]);
  rows.sort(([a], [b]) => {
    if (a.missing || b.missing) return a.missing - b.missing;
    const order = Number.isNaN(a.number + b.number) ? a.text.localeCompare(b.text) : a.number - b.number;
    return falling ? -order : order;
  });
  table.tBodies[0].append(...rows.map(([, row]) => row));
}
for (const table of document.querySelectorAll("table.sortable")) {
  [...table.tHead.rows[0].cells].forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    button.addEventListener("click", () => sortBy(table, head, column));
    head.append(button);
  });
}
addEventListener("keydown", (event) => {
  const close = document.querySelector("figure:target > .close");
  if (event.key === "Escape" && close) close.click();
});
let unfolded = [];
addEventListener("beforeprint", () => {
  unfolded = [...document.querySelectorAll("details:not([open])")];
  for (const details of unfolded) details.open = true;
});
addEventListener("afterprint", () => {
  for (const details of unfolded) details.open = false;
});
