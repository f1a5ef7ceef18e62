"use strict";
// Sorts tables, shows the figures of a point, and picks the artifact for a budget. The page is whole without it.
(function () {
  for (const table of document.querySelectorAll("table.sortable")) {
    const heads = [...table.tHead.rows[0].cells];
    heads.forEach((head, column) => head.querySelector("button").addEventListener("click", () => {
      const up = head.getAttribute("aria-sort") !== "ascending";
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", up ? "ascending" : "descending");
      const key = (row) => row.cells[column].dataset.v;
      const rows = [...table.tBodies[0].rows].sort((a, b) => {
        const x = key(a), y = key(b);
        if (x === "" || y === "") return (x === "") - (y === ""); // what was not measured stays last
        const order = isNaN(x) || isNaN(y) ? x.localeCompare(y) : x - y;
        return up ? order : -order;
      });
      table.tBodies[0].append(...rows);
    }));
  }

  const tip = document.getElementById("tip");
  const show = (target) => {
    tip.textContent = target.dataset.tip;
    tip.hidden = false;
    const box = target.getBoundingClientRect(), room = document.documentElement.clientWidth;
    tip.style.left = Math.max(6, Math.min(box.left + 12, room - tip.offsetWidth - 6)) + window.scrollX + "px";
    tip.style.top = box.top + window.scrollY - tip.offsetHeight - 8 + "px";
  };
  for (const kind of ["mouseover", "focusin", "click"]) {
    document.addEventListener(kind, (event) => {
      const target = event.target.closest && event.target.closest("[data-tip]");
      if (target) show(target); else tip.hidden = true;
    });
  }

  const rows = JSON.parse(document.getElementById("rows").textContent);
  const form = document.getElementById("budget");
  const limit = (name) => form.elements[name].value === "" ? Infinity : Number(form.elements[name].value);
  const first = document.getElementById("pick").textContent;
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("input", () => {
    const ms = limit("ms"), drop = limit("drop"), mib = limit("mib");
    const within = (value, most) => most === Infinity || (value !== null && value <= most);
    const good = rows.filter((row) => within(row.p50, ms) && (row.drop === null || row.drop <= drop) && within(row.size, mib));
    const timed = good.filter((row) => row.p50 !== null);
    const pool = timed.length ? timed : good;
    const cost = (row) => timed.length ? row.p50 : row.size === null ? Infinity : row.size;
    const best = pool.reduce((a, b) => (a === null || cost(b) < cost(a) ? b : a), null);
    document.getElementById("pick").textContent = best ? best.name : "none";
    document.getElementById("pick-what").textContent = best ? best.what : "";
    document.getElementById("cards").hidden = !best || best.name !== first; // they are of the artifact named first
    document.getElementById("pick-why").textContent = best ? best.why : "No artifact keeps within this budget.";
  });
})();
