"use strict";
// Everything is there without this script: it sorts tables, closes an enlarged figure at Escape, changes between
// light and dark, unfolds all, and unfolds what a link leads to.
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
function makeButton(text, act) {
  const button = document.createElement("button");
  button.type = "button";
  button.append(text);
  button.addEventListener("click", () => act(button));
  return button;
}
for (const table of document.querySelectorAll("table.sortable")) {
  [...table.tHead.rows[0].cells].forEach((head, column) => {
    const button = makeButton("", () => sortBy(table, head, column));
    button.append(...[...head.childNodes].filter((node) => node !== button));
    head.append(button);
  });
}
function changeTheme() {
  const root = document.documentElement;
  const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = dark ? "light" : "dark";
}
function unfoldAll(button) {
  const all = [...document.querySelectorAll("details")];
  const open = all.some((details) => !details.open);
  for (const details of all) details.open = open;
  button.textContent = open ? "Fold" : "Unfold";
}
const tools = document.createElement("div");
tools.className = "tools";
tools.append(makeButton("Unfold", unfoldAll), makeButton("Theme", changeTheme));
document.querySelector("nav").append(tools);
function unfoldTarget() {
  for (let part = document.getElementById(decodeURIComponent(location.hash.slice(1))); part; part = part.parentElement)
    if (part.tagName === "DETAILS") part.open = true;
}
addEventListener("hashchange", unfoldTarget);
unfoldTarget();
addEventListener("keydown", (event) => {
  const close = document.querySelector("figure:target > .close");
  if (event.key === "Escape" && close) close.click();
});
