"use strict";

const cellValue = (row, index) => row.cells[index].dataset.value;

function compare(a, b) {
  if (a === "" || b === "") return (a === "") - (b === "");
  return Number(a) - Number(b);
}

function sortBy(table, index) {
  const heads = table.tHead.rows[1].cells;
  const rising = heads[index].getAttribute("aria-sort") !== "ascending";
  const rows = [...table.tBodies[0].rows];
  rows.sort((a, b) => {
    const [x, y] = [cellValue(a, index), cellValue(b, index)];
    return x === "" || y === "" || rising ? compare(x, y) : compare(y, x);
  });
  for (const head of heads) head.setAttribute("aria-sort", "none");
  heads[index].setAttribute("aria-sort", rising ? "ascending" : "descending");
  table.tBodies[0].append(...rows);
}

function quoted(text) {
  const inert = /^[=+\-@\t\r]/.test(text) && Number.isNaN(Number(text)) ? "'" + text : text;
  return /[",\n\r]/.test(inert) ? '"' + inert.replaceAll('"', '""') + '"' : inert;
}

function asCsv(table) {
  const names = [...table.tHead.rows[1].cells].map((head) => head.dataset.column);
  const lines = [...table.tBodies[0].rows].map((row) =>
    [...row.cells].map((cell) => cell.dataset.copy ?? cell.dataset.value));
  return [names, ...lines].map((line) => line.map(quoted).join(",")).join("\n") + "\n";
}

async function copyText(text) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    const area = document.createElement("textarea");
    area.value = text;
    document.body.append(area);
    area.select();
    document.execCommand("copy");
    area.remove();
  }
}

for (const table of document.querySelectorAll("table[data-sortable]")) {
  [...table.tHead.rows[1].cells].forEach((head, index) => {
    head.querySelector("button").addEventListener("click", () => sortBy(table, index));
  });
}

for (const button of document.querySelectorAll("button[data-copy]")) {
  const label = button.textContent;
  button.addEventListener("click", async () => {
    await copyText(asCsv(document.getElementById(button.dataset.copy)));
    button.textContent = button.dataset.done;
    setTimeout(() => { button.textContent = label; }, 1500);
  });
}

document.documentElement.dataset.ready = "yes";
