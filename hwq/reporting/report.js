// Sort a table by a column: numbers by data-value, text by itself. Without this script the tables are complete, in given order.
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = table.tHead.rows[0].cells, body = table.tBodies[0];
  for (const [column, head] of [...heads].entries()) {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    head.setAttribute("aria-sort", "none");
    button.addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") === "none" ? head.classList.contains("number") : head.getAttribute("aria-sort") === "ascending";
      for (const other of heads) other.setAttribute("aria-sort", "none");
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const key = row => { const cell = row.cells[column], value = cell.dataset.value; return value === undefined ? cell.textContent : value === "" ? NaN : Number(value); };
      const order = (a, b) => typeof a === "string" || typeof b === "string" ? String(a).localeCompare(String(b), "en", {numeric: true})
        : Number.isNaN(a) ? (Number.isNaN(b) ? 0 : down ? -1 : 1) : Number.isNaN(b) ? (down ? 1 : -1) : a < b ? -1 : a > b ? 1 : 0;
      body.append(...[...body.rows].sort((a, b) => (down ? -1 : 1) * order(key(a), key(b))));
    });
  }
}
