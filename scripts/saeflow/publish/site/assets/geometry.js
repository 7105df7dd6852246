// The page of geometry: verdicts beside controls, polytopes to turn, hierarchical SAEs, steering.
"use strict";

(async () => {
  const { load, make, number, records, plot, COLOURS, ready, fail } = saeflow;
  const [model, parent, metric, site, concept] = ["model", "parent", "metric", "site", "concept"].map((id) => document.getElementById(id));
  const METRICS = {
    purity: "purity", recall: "recall", leak_rate: "leak rate", child_purity: "child purity", absorption: "absorption",
    steering_leak_median: "steering leak (median)", ev: "explained variance", ce_recovered: "cross-entropy recovered",
  };
  const KINDS = { vertex: ["diamond", 7], word: ["circle", 3], "held-out word": ["cross", 4], "other word": ["circle-open", 2] };
  let all;

  const mean = (values) => values.reduce((a, b) => a + b, 0) / values.length;
  const unique = (values) => [...new Set(values)];
  const options = (select, values, names = {}) => select.replaceChildren(...values.map((value) => make("option", { value }, names[value] || value)));
  const interval = (row) => (row.low === null || row.low === undefined ? number(row.value) : `${number(row.value)} (${number(row.low)} to ${number(row.high)})`);
  const now = () => all[model.value];

  function verdicts() {
    const rows = now().verdicts;
    const cases = unique(rows.map((row) => row.case));
    const statistics = unique(rows.map((row) => row.statistic)).filter((name) => rows.find((row) => row.statistic === name && row.case === "model"));
    const cell = (row) => (row ? make("td", {}, interval(row), row.verdict ? make("br") : "", row.verdict ? make("b", {}, row.verdict) : "") : make("td", {}, "–"));
    const body = statistics.map((name) => {
      const own = rows.filter((row) => row.statistic === name);
      return make("tr", {}, make("th", { scope: "row", class: "text" }, name), make("td", {}, own[0].target || ""), ...cases.map((one) => cell(own.find((row) => row.case === one))));
    });
    const head = make("tr", {}, ...["Statistic", "Goal", ...cases].map((name) => make("th", { scope: "col" }, name)));
    document.getElementById("verdicts").replaceChildren(make("table", { class: "wide" }, make("thead", {}, head), make("tbody", {}, ...body)));
    document.getElementById("verdicts-file").href = `../geometry/${model.value}/tables/phase1_teacher.csv`;
    const judged = rows.filter((row) => row.case === "model" && ["pass", "fail"].includes(row.verdict));
    document.getElementById("status").textContent = `${judged.filter((row) => row.verdict === "pass").length} of ${judged.length} tests of the model passed`;
  }

  function polytope() {
    const points = now().points.filter((point) => point.parent === parent.value);
    const traces = Object.entries(KINDS).map(([kind, [symbol, size]]) => {
      const own = points.filter((point) => point.kind === kind);
      return {
        type: "scatter3d", mode: kind === "vertex" ? "markers+text" : "markers", name: kind, x: own.map((p) => p.x), y: own.map((p) => p.y), z: own.map((p) => p.z),
        text: own.map((p) => p.text), textposition: "top center", hovertemplate: "%{text}<extra>%{fullData.name}</extra>", marker: { symbol, size },
      };
    }).filter((trace) => trace.x.length);
    const vertices = points.filter((point) => point.kind === "vertex");
    const edges = { x: [], y: [], z: [] };
    vertices.forEach((a, i) => vertices.slice(i + 1).forEach((b) => ["x", "y", "z"].forEach((axis) => edges[axis].push(a[axis], b[axis], null))));
    traces.unshift({ type: "scatter3d", mode: "lines", ...edges, line: { width: 2 }, opacity: 0.5, showlegend: false, hoverinfo: "skip" });
    const [paper, line] = ["--paper", "--line"].map((name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim());
    const bare = { title: { text: "" }, showticklabels: false, showbackground: false, gridcolor: line, zerolinecolor: line };
    plot(document.getElementById("polytope"), traces, { height: 560, scene: { bgcolor: paper, camera: { eye: { x: 1, y: 1, z: 0.7 } }, xaxis: bare, yaxis: bare, zaxis: bare }, legend: { orientation: "h" }, margin: { t: 0, l: 0, r: 0, b: 0 } });
  }

  function arms() {
    const rows = now().arms.filter((row) => row[metric.value] !== null);
    const traces = unique(rows.map((row) => row.arm)).flatMap((arm, i) => {
      const own = rows.filter((row) => row.arm === arm);
      const steps = unique(own.map((row) => row.step)).sort((a, b) => a - b);
      const at = (step) => own.filter((row) => row.step === step).map((row) => row[metric.value]);
      const colour = COLOURS[i % COLOURS.length];
      const name = arm.replaceAll("_", " ");
      return [
        { x: steps, y: steps.map((step) => mean(at(step))), name, mode: "lines", line: { color: colour, dash: i < 6 ? "solid" : "dash" } },
        { x: own.map((row) => row.step), y: own.map((row) => row[metric.value]), mode: "markers", marker: { color: colour, size: 6 }, showlegend: false, name },
      ];
    });
    plot(document.getElementById("arms"), traces, { height: 430, xaxis: { title: { text: "training step" } }, yaxis: { title: { text: METRICS[metric.value] } } });
  }

  function comparisons() {
    const rows = now().comparisons.map((row) => make("tr", {}, make("td", {}, row.comparison.replaceAll("_", " ")), make("td", { class: "text" }, row.quantity),
      make("td", {}, row.target || ""), make("td", {}, interval(row)), make("td", {}, make("b", {}, row.verdict || ""))));
    const head = make("tr", {}, ...["Comparison", "Quantity", "Goal", "Value", "Verdict"].map((name, i) => make("th", { scope: "col", ...(i < 2 ? { class: "text" } : {}) }, name)));
    document.getElementById("comparisons").replaceChildren(make("table", { class: "wide" }, make("thead", {}, head), make("tbody", {}, ...rows)));
  }

  function doses() {
    const rows = now().interventions.filter((row) => row.site === site.value && row.concept === concept.value);
    const traces = unique(rows.map((row) => row.kind)).flatMap((kind, i) => {
      const own = rows.filter((row) => row.kind === kind).sort((a, b) => a.dose - b.dose);
      const colour = COLOURS[i % COLOURS.length];
      return [["target", 4, "own words"], ["other", 1, "other words"]].map(([column, width, words]) => ({
        x: own.map((row) => row.dose), y: own.map((row) => row[column]), name: `${kind}: ${words}`, mode: "lines+markers", line: { color: colour, width },
      }));
    });
    plot(document.getElementById("doses"), traces, { height: 430, xaxis: { title: { text: "dose (1 raises the logits of its own words by 1)" } }, yaxis: { title: { text: "mean change of the centred logits" } } });
  }

  function places() {
    options(concept, unique(now().interventions.filter((row) => row.site === site.value).map((row) => row.concept)));
    doses();
  }

  function whole() {
    verdicts();
    options(parent, unique(now().points.map((point) => point.parent)));
    polytope();
    if (!metric) return; // No hierarchical SAEs, and no steering.
    options(metric, Object.keys(METRICS).filter((name) => now().arms.some((row) => row[name] !== null && row[name] !== undefined)), METRICS);
    options(site, unique(now().interventions.map((row) => row.site)));
    arms();
    comparisons();
    places();
  }

  try {
    all = Object.fromEntries(Object.entries(await load("geometry.js", "geometry")).map(([name, tables]) =>
      [name, Object.fromEntries(Object.entries(tables).map(([key, frame]) => [key, records(frame)]))]));
    options(model, Object.keys(all));
    for (const [select, draw] of [[model, whole], [parent, polytope], [metric, arms], [site, places], [concept, doses]]) select?.addEventListener("input", draw);
    addEventListener("saeflow-theme", whole);
    whole();
    ready();
  } catch (error) {
    fail(error);
  }
})();
