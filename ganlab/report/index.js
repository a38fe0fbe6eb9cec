"use strict";
// Everything here is a convenience: without it the page shows the same, the newest run first.
(() => {
  const table = document.querySelector("table.runs");
  const body = table.tBodies[0];
  const heads = [...table.tHead.rows[0].cells];
  const words = new Intl.Collator(undefined, { numeric: true });
  const value = (row, column) => row.cells[column].dataset.value;
  const order = (a, b) => (isNaN(a) || isNaN(b) ? words.compare(a, b) : a - b);
  const sort = (column, direction) => {
    const sign = direction === "ascending" ? 1 : -1;
    const rows = [...body.rows].sort((one, other) => {
      const [a, b] = [value(one, column), value(other, column)];
      if (a === "" || b === "") return (a === "") - (b === ""); // no value: always last
      return sign * order(a, b);
    });
    body.append(...rows);
    for (const head of heads) head.removeAttribute("aria-sort");
    heads[column].setAttribute("aria-sort", direction);
  };
  heads.forEach((head, column) => {
    const first = head.dataset.first;
    if (!first) return;
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const other = first === "ascending" ? "descending" : "ascending";
      sort(column, head.getAttribute("aria-sort") === first ? other : first);
    });
  });
})();
