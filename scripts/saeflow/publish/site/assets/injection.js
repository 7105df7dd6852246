// The page of the injection study: methods, pairs of architectures, curves.
"use strict";

(async () => {
  const { load, make, number, percent, records, heat, plot, pixels, ready, fail } = saeflow;
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

  function confusions() {
    const counts = study.confusion[variant.value] || [];
    const [rows, columns] = [0, 1].map((i) => [...new Set(counts.flatMap((c) => (i ? [c[1], c[2]] : [c[0]])))].sort((a, b) => a - b));
    const total = Object.fromEntries(rows.map((label) => [label, counts.filter((c) => c[0] === label).reduce((sum, c) => sum + c[3], 0)]));
    const table = (caption, place) => {
      const share = (label, answer) => counts.filter((c) => c[0] === label && c[place] === answer).reduce((sum, c) => sum + c[3], 0) / total[label];
      const head = make("tr", {}, make("th", {}, "class \\ answer"), ...columns.map((answer) => make("th", { scope: "col" }, String(answer))));
      const body = rows.map((label) => make("tr", {}, make("th", { scope: "row" }, String(label)), ...columns.map((answer) => {
        const { background, color } = heat(share(label, answer));
        return make("td", { style: `background:${background};color:${color}` }, (100 * share(label, answer)).toFixed(0));
      })));
      const whole = make("table", { class: "heat small" }, make("thead", {}, head), make("tbody", {}, ...body));
      return make("section", {}, make("h4", {}, caption), make("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": caption }, whole));
    };
    document.getElementById("confusion").replaceChildren(table("Before", 1), table("After", 2));
  }

  function examples() {
    const found = study.examples[variant.value] || {};
    const KINDS = {
      won: `Class ${study.concept}, answered right most often after`, missed: `Class ${study.concept}, least often`,
      taken: `Other classes, taken for ${study.concept} most often`,
    };
    const lists = Object.entries(KINDS).map(([kind, words]) => {
      const items = (found[kind] || []).map(([image, share]) => {
        const [packed, label] = study.images[image];
        const canvas = pixels(study.shape, packed, `test image ${image} of class ${label}`);
        return make("li", {}, canvas, `class ${label}`, make("br"), `${(100 * share).toFixed(0)} %`);
      });
      return make("section", {}, make("h4", {}, words), items.length ? make("ul", { class: "examples" }, ...items) : make("p", {}, "None."));
    });
    document.getElementById("examples").replaceChildren(...lists);
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
      showlegend: false, height: 460, xaxis: { title: { text: "specificity: look-alikes taken (%)" }, rangemode: "tozero" },
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
    const chosen = () => { pairs(); confusions(); examples(); curves(); };
    variant.addEventListener("input", chosen);
    addEventListener("saeflow-theme", curves);
    methods();
    chosen();
    ready();
  } catch (error) {
    fail(error);
  }
})();
