// The page of inversion: chosen features, their map, the texts that were found for them.
"use strict";

(async () => {
  const { load, make, number, records, plot, COLOURS, ready, fail } = saeflow;
  const [sae, feature] = ["sae", "feature"].map((id) => document.getElementById(id));
  const METHODS = { random: "random text", dataset: "data set", soft_projected: "soft, projected", gcg: "GCG", epo: "EPO", soft: "soft prompt" };
  let all;

  const now = () => all[sae.value];
  const link = (f) => make("a", { href: `feature.html#${sae.value}/${f}` }, String(f));
  const found = (f, method) => (now().texts || []).find((row) => row.feature === f && row.method === method);
  const median = (values) => { const v = [...values].sort((a, b) => a - b); return (v[(v.length - 1) >> 1] + v[v.length >> 1]) / 2; };
  const table = (names, rows) => make("table", { class: "wide" },
    make("thead", {}, make("tr", {}, ...names.map(([name, kind]) => make("th", { scope: "col", ...(kind ? { class: kind } : {}) }, name)))),
    make("tbody", {}, ...rows));

  function chosen() {
    const rows = now().map.filter((row) => row.role);
    const cells = rows.map((row) => {
      const said = (now().explanations || []).find((one) => one.feature === row.feature) || {};
      return make("tr", {}, make("td", {}, link(row.feature)), make("td", { class: "text" }, row.role),
        make("td", { class: "text" }, said.explanation || "–"), make("td", {}, number(said.detection, 2)), make("td", {}, number(said.top_token_detection, 2)),
        make("td", {}, number(found(row.feature, "gcg")?.ratio, 3)), make("td", {}, number(found(row.feature, "epo")?.ratio, 3)));
    });
    document.getElementById("chosen").replaceChildren(table([["Feature"], ["Chosen as", "text"], ["Explanation", "text"], ["Detection (AUROC)"],
      ["of its top token"], ["Ratio, GCG"], ["Ratio, EPO"]], cells));
    const clusters = new Set(now().map.map((row) => row.cluster).filter((c) => c >= 0)).size;
    document.getElementById("status").textContent = `${rows.length} of ${now().map.length} features on the map chosen, ${clusters} clusters`;
  }

  function map() {
    const rows = now().map;
    const colour = (c) => (c < 0 ? "#9a9a9a" : COLOURS[c % COLOURS.length]);
    const element = document.getElementById("map");
    plot(element, [{
      type: "scatter", mode: "markers", x: rows.map((r) => r.x), y: rows.map((r) => r.y), customdata: rows.map((r) => r.feature),
      text: rows.map((r) => `feature ${r.feature}, ${r.cluster < 0 ? "no cluster" : `cluster ${r.cluster}`}<br>fires on ${number(100 * r.density)} % of tokens${r.role ? `<br>${r.role}` : ""}`),
      hovertemplate: "%{text}<extra></extra>", marker: { color: rows.map((r) => colour(r.cluster)), size: rows.map((r) => (r.role ? 13 : 6)), opacity: 0.8, line: { width: rows.map((r) => (r.role ? 1.5 : 0)), color: "#888" } },
    }], { height: 480, xaxis: { title: { text: "component 1" } }, yaxis: { title: { text: "component 2" } } });
    element.removeAllListeners?.("plotly_click");
    element.on("plotly_click", ({ points }) => { location.href = `feature.html#${sae.value}/${points[0].customdata}`; });
  }

  function ratios() {
    const names = Object.keys(METHODS).filter((name) => now().texts.some((row) => row.method === name && row.ratio !== null));
    const traces = names.flatMap((name, i) => {
      const own = now().texts.filter((row) => row.method === name && row.ratio !== null).sort((a, b) => a.ratio - b.ratio);
      const middle = median(own.map((row) => row.ratio));
      const axes = name === "soft" ? { xaxis: "x2", yaxis: "y2" } : {}; // Soft prompts are no text and reach several times as high.
      return [
        { ...axes, x: own.map((_, k) => i + 0.4 * ((k + 0.5) / own.length - 0.5)), y: own.map((row) => row.ratio), mode: "markers", marker: { color: COLOURS[i], size: 7 }, name: METHODS[name],
          text: own.map((row) => `feature ${row.feature}`), hovertemplate: "%{text}: %{y:.2f}<extra>%{fullData.name}</extra>" },
        { ...axes, x: [i - 0.3, i + 0.3], y: [middle, middle], mode: "lines", line: { color: COLOURS[i], width: 3 }, hovertemplate: `median %{y:.2f}<extra>${METHODS[name]}</extra>` },
      ];
    });
    plot(document.getElementById("ratios"), traces, { showlegend: false, height: 400, yaxis: { title: { text: "ratio to the best text of the data" }, rangemode: "tozero" },
      xaxis: { domain: names.includes("soft") ? [0, 0.8] : [0, 1], tickvals: names.map((_, i) => i), ticktext: names.map((name) => METHODS[name]), zeroline: false },
      xaxis2: { domain: [0.87, 1], anchor: "y2", tickvals: [names.indexOf("soft")], ticktext: [METHODS.soft], zeroline: false }, yaxis2: { anchor: "x2", rangemode: "tozero" },
      shapes: [{ type: "line", xref: "x domain", x0: 0, x1: 1, y0: 1, y1: 1, line: { width: 1, color: "#888" } }] });
  }

  function front() {
    const f = +feature.value;
    const hover = { hovertemplate: "%{text}<br>ratio %{y:.2f}, %{x:.2f} nats per token<extra>%{fullData.name}</extra>" };
    const line = now().fronts.filter((row) => row.feature === f).sort((a, b) => a.cross_entropy - b.cross_entropy);
    const traces = [{ x: line.map((r) => r.cross_entropy), y: line.map((r) => r.ratio), text: line.map((r) => r.text), mode: "lines+markers", name: "EPO's front", ...hover }];
    for (const method of ["gcg", "dataset", "random"]) {
      const one = found(f, method);
      if (one) traces.push({ x: [one.cross_entropy], y: [one.ratio], text: [one.text], mode: "markers", marker: { size: 12 }, name: METHODS[method], ...hover });
    }
    plot(document.getElementById("front"), traces, { height: 400, xaxis: { title: { text: "cross-entropy (nats per token): low is fluent" } }, yaxis: { title: { text: "ratio" } } });
    const rows = now().texts.filter((row) => row.feature === f && row.text !== null).map((row) => make("tr", {}, make("td", {}, METHODS[row.method] || row.method),
      make("td", { class: "text" }, make("code", {}, row.text)), make("td", {}, number(row.ratio)), make("td", {}, number(row.cross_entropy)), make("td", {}, number(row.evaluations, 6))));
    document.getElementById("gallery").replaceChildren(table([["Search"], ["Text", "text"], ["Ratio"], ["Cross-entropy (nats)"], ["Forward passes"]], rows));
  }

  function whole() {
    chosen();
    map();
    if (!feature) return; // Nothing was searched for.
    feature.replaceChildren(...now().map.filter((row) => row.role).map((row) => make("option", { value: row.feature }, String(row.feature))));
    ratios();
    front();
  }

  try {
    all = Object.fromEntries(Object.entries(await load("inversion.js", "inversion")).map(([name, tables]) =>
      [name, Object.fromEntries(Object.entries(tables).map(([key, frame]) => [key, records(frame)]))]));
    sae.replaceChildren(...Object.keys(all).map((name) => make("option", { value: name }, name)));
    sae.addEventListener("input", whole);
    feature?.addEventListener("input", front);
    addEventListener("saeflow-theme", whole);
    whole();
    ready();
  } catch (error) {
    fail(error);
  }
})();
