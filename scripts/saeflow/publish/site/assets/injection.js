// The page of the injection study: methods, pairs of architectures, curves.
"use strict";

(async () => {
  const { load, make, number, percent, records, heat, plot, ready, fail } = saeflow;
  const COLUMNS = [
    ["label", "Method"], ["tier", "Knowledge"], ["site", "Site"], ["transfer", "Transfer"], ["worst_transfer", "Worst pair"],
    ["specificity", "Specificity"], ["preservation", "Preservation"], ["excess", "Above untrained"], ["n_pairs", "Pairs"],
    ["added_multiply_adds", "Multiply-adds added"], ["reading", "Reading"],
  ];
  const TEXT = ["label", "tier", "site", "reading"];
  const SHARES = ["transfer", "worst_transfer", "specificity", "preservation", "excess"];
  const table = document.querySelector("#methods table");
  const [tier, family, variant] = ["tier", "family", "variant"].map((id) => document.getElementById(id));
  let sort = { column: "tier", down: false };
  let study;

  const same = (a, b) => a.label === b.label && a.tier === b.tier && a.site === b.site;

  function methods() {
    const rows = study.summary.filter((row) => (!tier.value || row.tier === tier.value) && (!family.value || row.family === family.value));
    const place = (row) => (sort.column === "tier" ? study.summary.indexOf(row) : row[sort.column]);
    rows.sort((a, b) => {
      const [x, y] = [place(a), place(b)];
      if (x === null || y === null) return (x === null) - (y === null);
      const order = typeof x === "string" ? x.localeCompare(y) : x - y;
      return sort.down ? -order : order;
    });
    const heads = COLUMNS.map(([column, name]) => {
      const button = make("button", { type: "button" }, name);
      button.addEventListener("click", () => {
        sort = { column, down: sort.column === column ? !sort.down : !TEXT.includes(column) };
        methods();
        table.querySelector(`[data-column="${column}"] button`).focus();
      });
      const state = sort.column === column ? (sort.down ? "descending" : "ascending") : "none";
      return make("th", { scope: "col", "aria-sort": state, "data-column": column, ...(TEXT.includes(column) ? { class: "text" } : {}) }, button);
    });
    table.tHead.replaceChildren(make("tr", {}, ...heads));
    table.tBodies[0].replaceChildren(...rows.map((row) => make("tr", {}, ...COLUMNS.map(([column]) => {
      const value = row[column];
      if (TEXT.includes(column)) return make("td", { class: "text" }, value);
      return make("td", {}, SHARES.includes(column) ? percent(value, row[`${column}_std`]) : number(value, 4));
    }))));
    document.getElementById("status").textContent = `${rows.length} of ${study.summary.length} variants`;
  }

  function pairs() {
    const row = study.summary[variant.value];
    const found = study.pairs.filter((pair) => same(pair, row));
    const names = study.architectures;
    const cells = (source) => names.map((target) => {
      const pair = found.find((one) => one.source === source && one.target === target);
      if (!pair) return make("td", { title: "does not apply" }, "–");
      const { background, color } = heat(pair.transfer);
      return make("td", { style: `background:${background};color:${color}` }, percent(pair.transfer));
    });
    const head = make("tr", {}, make("th", {}, "from \\ into"), ...names.map((name) => make("th", { scope: "col" }, name)));
    const body = names.map((source) => make("tr", {}, make("th", { scope: "row" }, source), ...cells(source)));
    document.getElementById("pairs").replaceChildren(make("table", { class: "heat" }, make("thead", {}, head), make("tbody", {}, ...body)));
  }

  function curves() {
    const row = study.summary[variant.value];
    const traces = study.summary.filter((one) => one.n_pairs).map((one) => {
      const points = study.curve.filter((point) => same(point, one)).sort((a, b) => a.gamma - b.gamma);
      const chosen = one === row;
      return {
        x: points.map((p) => 100 * p.specificity), y: points.map((p) => 100 * p.transfer), name: `${one.label}, ${one.tier}, ${one.site}`,
        mode: "lines+markers", line: { width: chosen ? 5 : 1 }, marker: { size: chosen ? 10 : 4 }, opacity: chosen ? 1 : 0.45,
        hovertemplate: "%{fullData.name}<br>transfer %{y:.1f} %<br>specificity %{x:.1f} %<extra></extra>",
      };
    });
    plot(document.getElementById("curve"), traces, {
      showlegend: false, height: 460, xaxis: { title: { text: "specificity: look-alikes taken for the concept (%)" }, rangemode: "tozero" },
      yaxis: { title: { text: "transfer (%)" }, range: [0, 101] },
    });
  }

  try {
    const content = await load("injection.js", "injection");
    study = { ...content, summary: records(content.summary), pairs: records(content.pairs), curve: records(content.curve) };
    for (const [select, name] of [[tier, "tier"], [family, "family"]]) {
      select.append(...new Set(study.summary.map((row) => row[name])).values().map((value) => make("option", { value }, value)));
      select.addEventListener("input", methods);
    }
    study.summary.forEach((row, i) => {
      if (row.n_pairs) variant.append(make("option", { value: i }, `${row.label}, ${row.tier}, ${row.site}`));
    });
    // The new method's, or what transfers most of what is no reference.
    const rank = (row) => (row.family === "reference" || !row.n_pairs ? -1 : row.transfer + (row.family === "new"));
    variant.value = study.summary.reduce((best, row, i, rows) => (rank(row) > rank(rows[best]) ? i : best), 0);
    variant.addEventListener("input", () => { pairs(); curves(); });
    addEventListener("saeflow-theme", curves);
    methods();
    pairs();
    curves();
    ready();
  } catch (error) {
    fail(error);
  }
})();
