// The feature explorer: all features of all SAEs in one table, of which only the rows in sight exist.
"use strict";

(async () => {
  const { load, make, number, ready, fail } = saeflow;
  const ROW = 34; // height of a row in pixels, as the style sheet has it
  const box = document.getElementById("rows");
  const body = box.querySelector("tbody");
  const status = document.getElementById("status");
  const chosen = document.getElementById("sae");
  const search = document.getElementById("search");
  const dead = document.getElementById("dead");
  const tested = document.getElementById("tested");
  const saes = []; // {name, n, kind, index}
  let shown = []; // [sae, feature] of every row that the filters keep, in order
  let drawn = ""; // the first and the last of them that are rows of the table now
  let sort = { column: "score", down: true };

  const value = ([s, i], column) => {
    if (column === "sae") return saes[s].name;
    if (column === "feature") return i;
    return saes[s].index[column][i];
  };

  // Numbers before words, nothing at the end whatever the direction; ties in the order of SAEs and features.
  function compare(a, b) {
    const [x, y] = [value(a, sort.column), value(b, sort.column)];
    if (x === null || y === null) return (x === null) - (y === null) || a[0] - b[0] || a[1] - b[1];
    const order = typeof x === "string" ? x.localeCompare(y) : x - y;
    return (sort.down ? -order : order) || a[0] - b[0] || a[1] - b[1];
  }

  function refresh() {
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    shown = [];
    saes.forEach((sae, s) => {
      if (!sae.index || (chosen.value && chosen.value !== sae.name)) return;
      for (let i = 0; i < sae.n; i++) {
        if (!dead.checked && sae.index.dead[i]) continue;
        if (tested.checked && sae.index.score[i] === null) continue;
        if (words.length) {
          const text = `${sae.index.says[i]} ${sae.name} ${i}`.toLowerCase();
          if (!words.every((word) => text.includes(word))) continue;
        }
        shown.push([s, i]);
      }
    });
    shown.sort(compare);
    const loaded = saes.filter((sae) => sae.index).length;
    const progress = loaded < saes.length ? ` (${loaded} of ${saes.length} SAEs read)` : "";
    status.textContent = `${shown.length.toLocaleString("en")} features${progress}`;
    box.querySelector("table").setAttribute("aria-rowcount", shown.length + 1);
    for (const head of box.querySelectorAll("th")) {
      const own = head.dataset.column === sort.column;
      head.setAttribute("aria-sort", own ? (sort.down ? "descending" : "ascending") : "none");
    }
    drawn = "";
    draw();
  }

  function draw() {
    const first = Math.max(0, Math.floor(box.scrollTop / ROW) - 10);
    const last = Math.min(shown.length, first + Math.ceil(box.clientHeight / ROW) + 20);
    // The same rows stay as they are: a click on one that is replaced between press and release is lost.
    if (drawn === `${first}-${last}`) return;
    drawn = `${first}-${last}`;
    const rows = [gap(first)];
    for (let r = first; r < last; r++) {
      const [s, i] = shown[r];
      const { name, index } = saes[s];
      const link = make("a", { href: `feature.html#${name}/${i}` }, String(i));
      rows.push(
        make("tr", { "aria-rowindex": r + 2 },
          make("td", {}, link), make("td", { class: "text", title: name }, name),
          make("td", {}, number(index.density[i])), make("td", {}, number(index.max[i])), make("td", {}, number(index.score[i])),
          make("td", { class: "text", title: index.says[i] }, index.says[i])),
      );
    }
    rows.push(gap(shown.length - last));
    body.replaceChildren(...rows);
  }

  function gap(n) {
    const cell = make("td", { colspan: 6, style: `height:${n * ROW}px` });
    return make("tr", { class: "gap", "aria-hidden": "true" }, cell);
  }

  box.addEventListener("scroll", () => requestAnimationFrame(draw));
  addEventListener("resize", draw);
  for (const element of [search, chosen, dead, tested]) {
    element.addEventListener("input", () => { box.scrollTop = 0; refresh(); });
  }
  for (const head of box.querySelectorAll("th")) {
    head.querySelector("button").addEventListener("click", () => {
      const column = head.dataset.column;
      sort = { column, down: sort.column === column ? !sort.down : !["sae", "feature", "says"].includes(column) };
      box.scrollTop = 0;
      refresh();
    });
  }

  try {
    const listed = await load("features/index.js", "features");
    saes.push(...listed.saes);
    chosen.append(...saes.map((sae) => make("option", { value: sae.name }, sae.name)));
    const asked = decodeURIComponent(location.hash.slice(1));
    if (saes.some((sae) => sae.name === asked)) chosen.value = asked;
    let refreshed = 0;
    for (const sae of saes) {
      sae.index = await load(`features/${sae.name}/index.js`, `features/${sae.name}`);
      // The first at once, then not at every one: each time all rows are sorted.
      if (refreshed === 0 || performance.now() - refreshed > 300) { refresh(); refreshed = performance.now(); }
    }
    refresh();
    ready();
  } catch (error) {
    fail(error);
  }
})();
